"""The tiny world: small images of coloured shapes, the captions of its generator, and a checker that reads the pixels.

A *scene* is a dict: `objects` is a list of one to three groups with `shape`, `color`, `size` and `count` (1 to 4; four
shapes in all at most), `relations` a list of [index of a group, relation, index of a group], `background` a colour. A
value of None means that the user did not say. The generator is trained on `caption`s only; users write as `users.py`
has it. The checker (`check_pictures`, `answer_question`) is the ground truth of the tiny world: it looks at pixels
alone and must never become a training reward.
"""

import copy
import functools
import itertools
import random
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage


LOOK = ("shape", "color", "size")
PICTURE_SIZE = 48  # pixels
MAX_SHAPES = 4  # in one image
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 5.0, "big": 8.0}  # half of the shape's extent in pixels
COLORS = {
    "red": (215, 35, 40),
    "green": (40, 150, 65),
    "blue": (45, 85, 220),
    "yellow": (245, 215, 50),
    "purple": (130, 55, 175),
    "orange": (245, 130, 25),
    "white": (250, 250, 250),
    "black": (15, 15, 15),
}
BACKGROUNDS = {
    "white": COLORS["white"],
    "black": COLORS["black"],
    "gray": (135, 140, 145),
    "pink": (250, 175, 200),
    "brown": (105, 70, 45),
}
COUNTS = {"one": 1, "two": 2, "three": 3, "four": 4}
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# relation: its opposite, and the direction (x, y) from the first shape to the second
RELATIONS = {
    "left of": ("right of", (1, 0)),
    "right of": ("left of", (-1, 0)),
    "above": ("below", (0, 1)),
    "below": ("above", (0, -1)),
}
MIN_OFFSET = 6  # pixels between two centres, along the relation's direction, for the relation to hold
# The kinds of scene, and how often each is drawn.
KINDS = {"single": 10, "count": 15, "pair": 10, "pair_relation": 30, "groups": 10, "triple": 10, "triple_relation": 15}

# The odd pairs of this world: no training prompt asks for one. Each image that validation asks for has at least one.
UNSEEN_PAIRS = frozenset(
    {
        ("red", "circle"),
        ("green", "square"),
        ("blue", "triangle"),
        ("yellow", "cross"),
        ("purple", "square"),
        ("orange", "circle"),
        ("white", "cross"),
        ("black", "triangle"),
    }
)


# ------------------------------------------------------------------------------------------------ scenes and captions


def is_unseen(scene: dict) -> bool:
    return any((group["color"], group["shape"]) in UNSEEN_PAIRS for group in scene["objects"])


def random_scene(rng: random.Random, kind: str | None = None) -> dict:
    """Return a complete scene of a kind (of `KINDS`; None: a random one); no two groups share colour and shape."""
    kind = kind or rng.choices(list(KINDS), KINDS.values())[0]
    background = rng.choice(list(BACKGROUNDS))
    colors = [color for color in COLORS if color != background]
    looks = rng.sample(list(itertools.product(colors, SHAPES)), 3)
    counts = {
        "single": [1],
        "count": [rng.randint(2, 4)],
        "groups": rng.choice([[1, 2], [2, 1], [1, 3], [3, 1], [2, 2]]),
    }
    counts = counts.get(kind) or ([1, 1] if kind.startswith("pair") else [1, 1, 1])
    objects = [
        {"shape": shape, "color": color, "size": rng.choice(list(SIZES)), "count": count}
        for (color, shape), count in zip(looks, counts, strict=False)
    ]
    relations = []
    if kind == "pair_relation":
        relations = [[0, rng.choice(list(RELATIONS)), 1]]
    if kind == "triple_relation":
        across, along = rng.choice(("left of", "right of")), rng.choice(("above", "below"))
        relations = [[0, across, 1], [0, along, 2]] if rng.random() < 0.5 else [[0, along, 1], [0, across, 2]]
    return {"objects": objects, "relations": relations, "background": background}


def near_scene(scene: dict, rng: random.Random) -> dict:
    """Return a complete scene that differs in one thing: an attribute, a count, a relation, or two groups' attributes
    exchanged. These are the mistakes that generators make."""
    kinds = ["shape", "color", "size", "background", "count"]
    kinds += ["exchange"] * 4 if len(scene["objects"]) > 1 else []
    kinds += ["relation"] * 4 if scene["relations"] else []
    values = {"shape": SHAPES, "color": list(COLORS), "size": list(SIZES)}
    while True:
        kind, near = rng.choice(kinds), copy.deepcopy(scene)
        group = rng.choice(near["objects"])
        if kind in values:
            group[kind] = rng.choice(values[kind])
        elif kind == "background":
            near["background"] = rng.choice(list(BACKGROUNDS))
        elif kind == "count" and not near["relations"]:
            group["count"] = rng.randint(1, MAX_SHAPES)
        elif kind == "exchange":
            first, second = rng.sample(near["objects"], 2)
            name = rng.choice(LOOK)
            first[name], second[name] = second[name], first[name]
        elif kind == "relation":
            relation = rng.choice(near["relations"])
            relation[1] = RELATIONS[relation[1]][0]
        looks = {(group["color"], group["shape"]) for group in near["objects"]}
        possible = len(looks) == len(near["objects"]) and near["background"] not in {color for color, _ in looks}
        same = near["relations"] == scene["relations"] and not scene["relations"]
        same = same and sorted(map(str, near["objects"])) == sorted(map(str, scene["objects"]))
        same = (same and near["background"] == scene["background"]) or near == scene
        if possible and not same and sum(group["count"] for group in near["objects"]) <= MAX_SHAPES:
            return near


def plural(noun: str, count: int = 2) -> str:
    return noun if count == 1 else noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def _phrase(group: dict) -> str:
    """Return the group in the generator's words: "three small red circles"."""
    return " ".join(
        [NUMBER_WORDS[group["count"]], group["size"], group["color"], plural(group["shape"], group["count"])]
    )


def caption(scene: dict) -> str:
    """Return a complete scene in the only style that the generator knows.

    "one big red square left of one small blue circle and above one big green cross on a white background": the
    relations are all of the first group; without relations, the groups are joined by "and".
    """
    text = _phrase(scene["objects"][0])
    relations = {second: relation for _, relation, second in scene["relations"]}
    for index, group in enumerate(scene["objects"][1:], 1):
        joint = [*(["and"] if index == 2 or not relations else []), *([relations[index]] if relations else [])]
        text += f" {' '.join(joint)} {_phrase(group)}"
    return f"{text} on a {scene['background']} background"


# ------------------------------------------------------------------------------------------------------------ drawing


def _draw_shape(draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, fill) -> None:
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill)
    elif shape == "square":
        half = 0.9 * r
        draw.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - 1.08 * r, y + 0.9 * r), (x + 1.08 * r, y + 0.9 * r)], fill=fill)
    else:
        arm = 0.36 * r
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)


def _cells(scene: dict, rng: random.Random) -> list[tuple[float, float]]:
    """Return a place for each shape, in -1..1 from the centre: as the relations say, else in reading order, two in a
    row or a column."""
    count = sum(group["count"] for group in scene["objects"])
    if count == 1:
        return [(0, 0)]
    if len(scene["relations"]) == 1:
        _, (dx, dy) = RELATIONS[scene["relations"][0][1]]
        return [(-dx, -dy), (dx, dy)]
    if scene["relations"]:  # the first group is at a corner, the others beside and above or below it
        directions = [RELATIONS[relation][1] for _, relation, _ in scene["relations"]]
        x, y = (-sum(steps) for steps in zip(*directions, strict=True))
        return [(x, y), *((x + 2 * dx, y + 2 * dy) for dx, dy in directions)]
    corners = [(-1, -1), (1, -1), (-1, 1), (1, 1)]
    if count == 2:
        return rng.choice([[(-1, 0), (1, 0)], [(0, -1), (0, 1)]])
    return corners[:count]


def draw_scene(scene: dict, rng: random.Random) -> Image.Image:
    """Return an image of a complete scene, 48x48 RGB: the places and the shades vary a little with `rng`."""

    def shade(color: tuple[int, int, int]) -> tuple[int, ...]:
        return tuple(max(0, min(255, round(value + rng.uniform(-8, 8)))) for value in color)

    scale = 4  # supersampling, for smooth edges
    canvas = Image.new("RGB", (PICTURE_SIZE * scale, PICTURE_SIZE * scale), shade(BACKGROUNDS[scene["background"]]))
    draw = ImageDraw.Draw(canvas)
    shapes = [group for group in scene["objects"] for _ in range(group["count"])]
    for group, (x, y) in zip(shapes, _cells(scene, rng), strict=True):
        centre = [(PICTURE_SIZE / 2 + 11 * step + rng.uniform(-1.5, 1.5)) * scale for step in (x, y)]
        _draw_shape(draw, group["shape"], *centre, SIZES[group["size"]] * scale, shade(COLORS[group["color"]]))
    return canvas.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BOX)


# -------------------------------------------------------------------------------------------------------- the checker

WINDOW = 23  # pixels: the square that a shape is compared with templates in


@functools.cache
def _templates() -> tuple[list[tuple[str, str]], np.ndarray]:
    """Return the names (shape, size) and the masks (n, 23 * 23) of every shape at every size and shift."""
    names, masks, scale = [], [], 8
    shifts = np.arange(-1.5, 1.51, 0.5)
    for shape, size, dx, dy in itertools.product(SHAPES, SIZES, shifts, shifts):
        canvas = Image.new("L", (WINDOW * scale, WINDOW * scale), 0)
        centre = [(WINDOW / 2 + shift) * scale for shift in (dx, dy)]
        _draw_shape(ImageDraw.Draw(canvas), shape, *centre, SIZES[size] * scale, 255)
        masks.append(np.asarray(canvas.resize((WINDOW, WINDOW), Image.Resampling.BOX), dtype=np.float32).ravel() / 255)
        names.append((shape, size))
    return names, np.stack(masks)


def _nearest(rgb: np.ndarray, colors: dict[str, tuple[int, int, int]]) -> str | None:
    """Return the nearest colour's name; None if all are far away."""
    distances = {name: float(np.linalg.norm(rgb - np.array(value))) for name, value in colors.items()}
    name = min(distances, key=distances.get)
    return name if distances[name] < 60 else None


def _regions(mask: np.ndarray) -> list[np.ndarray]:
    """Return the connected parts of a mask, each as a mask; specks under 8 pixels are left out."""
    labels, count = ndimage.label(mask)
    regions = [labels == index for index in range(1, count + 1)]
    return [region for region in regions if region.sum() >= 8]


def _read_shape(pixels: np.ndarray, back: np.ndarray, region: np.ndarray) -> dict:
    """Return what one connected `region` (a mask) shows: shape, color, size (each None if it can't be told), x, y."""
    distance = np.linalg.norm(pixels - back, axis=-1)
    inner = distance[region]
    front = np.median(pixels[region][inner >= np.percentile(inner, 50)], axis=0)
    rows, columns = np.nonzero(region)
    y, x = (rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2
    found = {"shape": None, "color": _nearest(front, COLORS), "size": None, "x": float(x), "y": float(y)}
    axis = front - back
    cover = ((pixels - back) @ axis / max(float(axis @ axis), 1.0)).clip(0, 1)
    cover[~ndimage.binary_dilation(region, iterations=2)] = 0
    top, left = round(y) - WINDOW // 2, round(x) - WINDOW // 2
    window = np.pad(cover, WINDOW)[top + WINDOW : top + 2 * WINDOW, left + WINDOW : left + 2 * WINDOW].ravel()
    outside = cover.sum() - window.sum()  # of the window: part of something larger than any shape
    names, masks = _templates()
    overlap = np.minimum(masks, window).sum(1) / (np.maximum(masks, window).sum(1) + outside)
    best = int(overlap.argmax())
    if overlap[best] >= 0.65:
        found["shape"], found["size"] = names[best]
    return found


def read_picture(image: Image.Image) -> dict:
    """Read `background` and `objects` (each with shape, color, size, x, y) off the pixels, without any model.

    The background is the median colour of the border; what differs from it, in connected regions, are the objects. An
    object's shape and size are those of the template that overlaps best (soft intersection over union). An attribute
    that can't be told (a colour far from all known ones, an overlap under 0.65) is None.
    """
    pixels = np.asarray(image.convert("RGB").resize((PICTURE_SIZE, PICTURE_SIZE)), dtype=np.float32)
    smooth = ndimage.gaussian_filter(pixels, (0.5, 0.5, 0))
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    back = np.median(border, axis=0)
    distance = np.linalg.norm(smooth - back, axis=-1)
    objects = []
    for region in _regions(distance > 45):
        contrast = np.percentile(distance[region], 75)
        objects += [_read_shape(smooth, back, part) for part in _regions(region & (distance > 0.5 * contrast))]
    return {"background": _nearest(back, BACKGROUNDS), "objects": objects}


def _holds(first: dict, relation: str, second: dict) -> bool:
    dx, dy = RELATIONS[relation][1]
    return dx * (second["x"] - first["x"]) + dy * (second["y"] - first["y"]) >= MIN_OFFSET


def shows(seen: dict, scene: dict) -> bool:
    """Return whether a picture as `read_picture` has it shows all that the scene states, and no further shape."""
    wanted = [(index, group) for index, group in enumerate(scene["objects"]) for _ in range(group["count"])]
    if scene["background"] not in (None, seen["background"]) or len(wanted) != len(seen["objects"]):
        return False
    for found in itertools.permutations(seen["objects"]):
        pairs = list(zip(wanted, found, strict=True))
        if all(group[name] in (None, shape[name]) for (_, group), shape in pairs for name in LOOK):
            groups = [[shape for (index, _), shape in pairs if index == of] for of in range(len(scene["objects"]))]
            if all(
                _holds(first, relation, second)
                for i, relation, j in scene["relations"]
                for first, second in itertools.product(groups[i], groups[j])
            ):
                return True
    return False


def check_pictures(images: Sequence[Image.Image], scene: Sequence[dict]) -> list[bool]:
    """Return whether each image shows all that its scene states; an attribute of None may be anything."""
    return [shows(read_picture(image), wanted) for image, wanted in zip(images, scene, strict=True)]


_LOOK = (
    rf"(?:(?P<size{{0}}>{'|'.join(SIZES)}) )?(?:(?P<color{{0}}>{'|'.join(COLORS)}) )?"
    rf"(?P<shape{{0}}>{'|'.join(SHAPES)}|object)(?:s|es)?"
)
_QUESTIONS = {
    name: re.compile(pattern.replace("<look>", _LOOK.format(1)).replace("<other>", _LOOK.format(2)) + r"\?")
    for name, pattern in {
        "exists": "Is there an? <look>",
        "count": "How many <look> are there",
        "relation": rf"Is the <look> (?P<relation>{'|'.join(RELATIONS)}) the <other>",
        "value": "What (?P<name>color|size|shape) is the <look>",
        "background": "What color is the background",
    }.items()
}


def answer_question(image: Image.Image | dict, question: str) -> str:
    """Return the answer to a question about an image (or what `read_picture` returned for it), from the pixels.

    Questions: "Is there a small red circle?", "How many red circles are there?", "What color is the big circle?"
    (or size, or shape: "What shape is the red object?"), "Is the red circle left of the square?", "What color is the
    background?". Size and colour may be left out; "object" is any shape.

    Returns:
        "yes" or "no", a number word, a colour, size or shape; "unclear" where the image has no such object, two that
        differ, or one that can't be told.

    Raises:
        ValueError: the question has none of these forms.
    """
    seen = image if isinstance(image, dict) else read_picture(image)
    matches = {name: match for name, pattern in _QUESTIONS.items() if (match := pattern.fullmatch(question))}
    if not matches:
        raise ValueError(f"the checker knows no question of this form: {question!r}")
    name, match = matches.popitem()
    words = match.groupdict()

    def found(number: int) -> list[dict]:
        look = {key: words[f"{key}{number}"] for key in ("size", "color", "shape")}
        look = {key: word for key, word in look.items() if word not in (None, "object")}
        return [shape for shape in seen["objects"] if all(shape[key] == word for key, word in look.items())]

    if name == "background":
        return seen["background"] or "unclear"
    if name == "exists":
        return "yes" if found(1) else "no"
    if name == "count":
        return NUMBER_WORDS[min(9, len(found(1)))]
    if name == "value":
        values = {shape[words["name"]] for shape in found(1)} or {None}
        return (values.pop() or "unclear") if len(values) == 1 else "unclear"
    pairs = [(a, b) for a, b in itertools.product(found(1), found(2)) if a is not b]
    return "yes" if pairs and all(_holds(a, words["relation"], b) for a, b in pairs) else "no"
