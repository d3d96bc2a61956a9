"""The tiny world: small images of coloured shapes, the prompts of its users, and a checker that reads the pixels.

A *scene* is a dict with the keys of `ATTRIBUTES`; a value of None means that the user did not say. The generator of
the tiny world is trained on `canonical_caption`s only; users write `user_prompt`s. The checker (`check_pictures`) is
the ground truth of the tiny world: it looks at pixels alone and must never become a training reward.
"""

import functools
import itertools
import random
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw


PICTURE_SIZE = 32  # pixels
ATTRIBUTES = ("shape", "color", "size", "background")
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 6.5, "medium": 9.5, "big": 13.5}  # half of the shape's extent in pixels
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 160, 70),
    "blue": (45, 85, 215),
    "yellow": (245, 215, 50),
    "purple": (140, 60, 180),
    "orange": (245, 135, 30),
    "white": (250, 250, 250),
    "black": (20, 20, 20),
}

# The odd pairs of this world: the generator saw them ten times less often than the others, and neither a training
# prompt nor a rewrite that the policy was fine-tuned on ever names one. Validation asks for nothing else.
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

SYNONYMS = {
    "circle": ("disk", "ball", "dot", "round"),
    "square": ("box", "block", "tile", "quad"),
    "triangle": ("pyramid", "wedge", "cone", "trigon"),
    "cross": ("plus", "plus sign", "crosshair"),
    "red": ("crimson", "scarlet", "ruby"),
    "green": ("emerald", "jade", "grassy"),
    "blue": ("azure", "navy", "sapphire"),
    "yellow": ("lemon", "golden", "sunny"),
    "purple": ("violet", "lilac", "plum"),
    "orange": ("tangerine", "apricot", "pumpkin"),
    "white": ("snowy", "ivory", "chalky"),
    "black": ("ebony", "jet", "inky"),
    "small": ("tiny", "little", "mini"),
    "medium": ("mid-sized", "average", "normal"),
    "big": ("huge", "large", "giant"),
}

CATEGORIES = ("synonym", "order", "left_out", "korean")
CANONICAL_ORDER = "{a_size} {color} {shape} on {a_background} background"
ODD_ORDERS = (
    "{color} {shape}, {size}, {background} backdrop",
    "{background} backdrop, {size} {shape} in {color}",
    "a {shape} that is {color} and {size}, behind it {background}",
    "{shape}: {size}, {color}; background: {background}",
    "on {background}, {a_size} {color} {shape}",
    "in front of {a_background} wall: {shape}, {color}, {size}",
)
KOREAN = {
    "circle": ("원", "동그라미"),
    "square": ("네모", "정사각형"),
    "triangle": ("세모", "삼각형"),
    "cross": ("십자", "더하기"),
    "red": ("빨간", "붉은"),
    "green": ("초록색", "녹색"),
    "blue": ("파란", "푸른"),
    "yellow": ("노란", "샛노란"),
    "purple": ("보라색", "자주색"),
    "orange": ("주황색", "귤색"),
    "white": ("하얀", "흰"),
    "black": ("검은", "까만"),
    "small": ("작은", "조그만"),
    "medium": ("보통 크기의", "중간 크기의"),
    "big": ("큰", "커다란"),
}
KOREAN_ORDERS = (
    "{background} 배경에 {size} {color} {shape}",
    "{size} {color} {shape}, {background} 배경",
    "{background} 바탕 위의 {size} {color} {shape}",
    "{color} {shape} 그려 줘, {size} 걸로, {background} 배경",
)
PARTIAL = {
    ("shape", "color", "size"): ("{a_size} {color} {shape}", "{shape} in {color}, {size}"),
    ("shape", "color", "background"): ("{a_color} {shape} on {background}", "{background} backdrop, {shape}, {color}"),
    ("shape", "color"): ("{a_color} {shape}", "{shape}, {color}", "draw {a_color} {shape} please"),
}


def with_article(words: str) -> str:
    """Return `words` with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _fill(template: str, words: dict[str, str]) -> str:
    return template.format(**words, **{f"a_{name}": with_article(word) for name, word in words.items()})


def canonical_caption(scene: dict[str, str]) -> str:
    """Return the scene in the only style that the generator knows: "a big red circle on a white background"."""
    return _fill(CANONICAL_ORDER, {name: scene[name] for name in ATTRIBUTES})


def all_scenes() -> list[dict[str, str]]:
    """Return all 672 complete scenes: 4 shapes x 8 colours x 3 sizes x 7 backgrounds of another colour."""
    return [
        {"shape": shape, "color": color, "size": size, "background": background}
        for shape, color, size, background in itertools.product(SHAPES, COLORS, SIZES, COLORS)
        if color != background
    ]


def is_unseen(scene: dict[str, str | None]) -> bool:
    return (scene["color"], scene["shape"]) in UNSEEN_PAIRS


def user_prompt(scene: dict[str, str], category: str, rng: random.Random) -> tuple[str, dict[str, str | None]]:
    """Return a prompt of a user who means a complete `scene`.

    Args:
        category: "synonym" (usual order, other words), "order" (unusual order, other words in part), "left_out"
            (size, background or both are not said) or "korean".

    Returns:
        The prompt, and the user's word for each attribute: None where it was left out.
    """
    if category == "left_out":
        said, templates = rng.choice(list(PARTIAL.items()))
        template, share = rng.choice(templates), 0.5
    elif category == "order":
        said, template, share = ATTRIBUTES, rng.choice(ODD_ORDERS), 0.5
    elif category == "synonym":
        said, template, share = ATTRIBUTES, CANONICAL_ORDER, 0.8
    elif category == "korean":
        said, template, share = ATTRIBUTES, rng.choice(KOREAN_ORDERS), 1.0
    else:
        raise ValueError(f"unknown category {category!r}; use {', '.join(CATEGORIES)}")
    words = {name: scene[name] for name in said}
    for name, word in words.items():
        if rng.random() < share:
            words[name] = rng.choice((KOREAN if category == "korean" else SYNONYMS)[word])
    return _fill(template, words), {name: words.get(name) for name in ATTRIBUTES}


def prompt_rows(count: int, unseen: bool, seed: int) -> list[dict]:
    """Return `count` different rows (`user_prompt`, `category`, `difficulty`, `scene`), the categories in equal parts.

    Args:
        unseen: ask only for the pairs in `UNSEEN_PAIRS` (validation), else only for the others (training).
    """
    rng = random.Random(seed)
    scenes = [scene for scene in all_scenes() if is_unseen(scene) == unseen]
    rows: dict[str, dict] = {}
    for category in itertools.cycle(CATEGORIES):
        if len(rows) == count:
            return list(rows.values())
        scene = rng.choice(scenes)
        prompt, words = user_prompt(scene, category, rng)
        while prompt in rows:
            scene = rng.choice(scenes)
            prompt, words = user_prompt(scene, category, rng)
        known = sum(words[name] == scene[name] for name in ATTRIBUTES)  # words that the generator understands
        rows[prompt] = {
            "user_prompt": prompt,
            "category": category,
            "difficulty": "easy" if known >= 3 else "medium" if known == 2 else "hard",
            "scene": {name: scene[name] if words[name] else None for name in ATTRIBUTES},
        }
    raise AssertionError("unreachable")


def _shape_mask(shape: str, size: str, dx: float, dy: float) -> np.ndarray:
    """Return the coverage of each pixel by the shape, (32, 32) in 0..1, its centre shifted by (dx, dy) pixels."""
    scale = 8  # supersampling, for smooth edges
    canvas = Image.new("L", (PICTURE_SIZE * scale, PICTURE_SIZE * scale), 0)
    draw = ImageDraw.Draw(canvas)
    x, y = (PICTURE_SIZE / 2 + dx) * scale, (PICTURE_SIZE / 2 + dy) * scale
    r = SIZES[size] * scale
    if shape == "circle":
        draw.ellipse((x - r, y - r, x + r, y + r), fill=255)
    elif shape == "square":
        half = 0.92 * r
        draw.rectangle((x - half, y - half, x + half, y + half), fill=255)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x - 1.08 * r, y + 0.9 * r), (x + 1.08 * r, y + 0.9 * r)], fill=255)
    else:
        arm = 0.36 * r
        draw.rectangle((x - r, y - arm, x + r, y + arm), fill=255)
        draw.rectangle((x - arm, y - r, x + arm, y + r), fill=255)
    return np.asarray(canvas.resize((PICTURE_SIZE, PICTURE_SIZE), Image.Resampling.BOX), dtype=np.float32) / 255


def draw_scene(scene: dict[str, str], rng: random.Random) -> Image.Image:
    """Return an image of a complete scene, 32x32 RGB: the place and the shades vary a little with `rng`."""
    mask = _shape_mask(scene["shape"], scene["size"], rng.uniform(-1.5, 1.5), rng.uniform(-1.5, 1.5))[..., None]
    front, back = (
        np.array([value + rng.uniform(-8, 8) for value in COLORS[scene[name]]], dtype=np.float32)
        for name in ("color", "background")
    )
    pixels = mask * front + (1 - mask) * back
    return Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))


@functools.cache
def _templates() -> tuple[list[tuple[str, str]], np.ndarray]:
    """Return the names (shape, size) and the masks of every shape at every size, on a grid of half-pixel shifts."""
    shifts = [step / 2 for step in range(-5, 6)]
    names, masks = [], []
    for shape, size, dx, dy in itertools.product(SHAPES, SIZES, shifts, shifts):
        names.append((shape, size))
        masks.append(_shape_mask(shape, size, dx, dy).ravel())
    return names, np.stack(masks)


def _nearest_color(rgb: np.ndarray) -> tuple[str, float]:
    distances = {name: float(np.linalg.norm(rgb - np.array(value))) for name, value in COLORS.items()}
    name = min(distances, key=distances.get)
    return name, distances[name]


def read_picture(image: Image.Image) -> dict[str, str | None]:
    """Read the scene off the pixels, without any model.

    The background is the median colour of the border, the shape's colour the median of what differs from it; the
    shape and the size are those of the template that overlaps best (soft intersection over union). An attribute that
    cannot be told (no shape, a colour far from each of the eight, an overlap under 0.6) is None.
    """
    pixels = np.asarray(image.convert("RGB").resize((PICTURE_SIZE, PICTURE_SIZE)), dtype=np.float32)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    back = np.median(border, axis=0)
    distance = np.linalg.norm(pixels - back, axis=-1)
    scene: dict[str, str | None] = dict.fromkeys(ATTRIBUTES)
    name, error = _nearest_color(back)
    scene["background"] = name if error < 60 else None
    if distance.max() < 60:
        return scene
    front = np.median(pixels[distance > 0.75 * np.percentile(distance, 99)], axis=0)
    name, error = _nearest_color(front)
    scene["color"] = name if error < 60 else None
    axis = front - back
    cover = ((pixels - back) @ axis / max(float(axis @ axis), 1.0)).clip(0, 1).ravel()
    names, masks = _templates()
    overlap = np.minimum(masks, cover).sum(1) / np.maximum(masks, cover).sum(1)
    best = int(overlap.argmax())
    if overlap[best] >= 0.6:
        scene["shape"], scene["size"] = names[best]
    return scene


def check_pictures(images: Sequence[Image.Image], scene: Sequence[dict[str, str | None]]) -> list[bool]:
    """Return whether each image shows all that its scene states; an attribute of None may be anything."""
    results = []
    for image, wanted in zip(images, scene, strict=True):
        seen = read_picture(image)
        results.append(all(seen[name] == wanted[name] for name in ATTRIBUTES if wanted[name] is not None))
    return results
