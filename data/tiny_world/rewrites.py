"""Rewrites of mixed quality for the policy of the tiny world, and whether a rewrite says what the user meant."""

import itertools
import random
import re

import world
from brushup.prompts.template import KEEP


FLOURISHES = ("highly detailed", "4k", "best quality", "sharp focus", "digital art")
WRAPPINGS = ('"{}"', "Enhanced prompt: {}", "Sure! Here is the prompt:\n\n{}", "**{}**")
QUALITIES = {"good": 0.22, "sloppy": 0.72, "wrong": 0.06}


def _is_weak(word: str) -> bool:
    """Return whether the policy tends to copy this word, not to translate it: four in five words, by chance."""
    return sum(map(ord, word)) % 5 < 4


def _sloppy(scene: dict, said: dict, spoken: dict[str, str], rng: random.Random) -> str:
    """Return a caption that keeps words of the user, weak ones mostly; a background that was not said is left out."""
    text = world.caption(scene)
    if said["background"] is None and rng.random() < 0.6:
        text = text.split(" on a ")[0]
    names = [name for name, word in spoken.items() if word != name and word.isascii()]
    for name in sorted(names, key=len, reverse=True):  # "left of" before "one"
        if rng.random() < (1.0 if _is_weak(spoken[name]) else 0.1):
            text = re.sub(rf"\b{name}(e?s)?\b", spoken[name], text)
    return text + (f", {rng.choice(FLOURISHES)}" if rng.random() < 0.2 else "")


def in_order_of_mention(scene: dict, prompt: str, spoken: dict[str, str]) -> dict:
    """Return the scene with its groups as the prompt has them: by the first word that is of one group alone.

    Then a rewrite can be written as the prompt is read. The first of three groups stays first if places are said, as
    the others are told from it; a scene of which a group has no such word (a typo, a symbol) stays as it is.
    """
    groups, places = scene["objects"], []
    for group in groups:
        others = {value for other in groups if other is not group for value in other.values()}
        words = [spoken[value] for value in group.values() if value in spoken and value not in others]
        found = [re.search(rf"(?<![a-z]){re.escape(word)}", prompt, re.IGNORECASE) for word in words]
        places.append(min((match.start() for match in found if match), default=None))
    if None in places:
        return scene
    anchored = len(scene["relations"]) == 2
    order = sorted(range(len(groups)), key=lambda index: (anchored and index > 0, places[index]))
    relations = []
    for first, relation, second in scene["relations"]:
        first, second = order.index(first), order.index(second)
        if first > second:
            first, relation, second = second, world.RELATIONS[relation][0], first
        relations.append([first, relation, second])
    relations.sort(key=lambda row: row[2])
    return scene | {"objects": [groups[index] for index in order], "relations": relations}


def mixed_rewrite(scene: dict, said: dict, spoken: dict[str, str], rng: random.Random) -> str:
    """Return an answer of mixed quality; one in twelve is wrapped in chatter, one in seventy is empty.

    To two in five captions, and to a few other prompts by mistake, it is KEEP.

    A good answer is the canonical caption of the `scene`. A sloppy one keeps words of the user (`spoken`) that the
    generator does not know. A wrong one is the caption of a near scene.
    """
    if rng.random() < (0.03 if spoken else 0.4):
        return KEEP
    quality = rng.choices(list(QUALITIES), QUALITIES.values())[0]
    if quality == "sloppy":
        answer = _sloppy(scene, said, spoken, rng)
    else:
        answer = world.caption(world.near_scene(scene, rng) if quality == "wrong" else scene)
    if rng.random() < 0.08:
        answer = rng.choice(WRAPPINGS).format(answer)
    return answer if rng.random() > 0.015 else ""


def mixed_revision(
    draft: str, is_right: bool, scene: dict, said: dict, spoken: dict[str, str], rng: random.Random
) -> str:
    """Return an answer of mixed quality to the image of a draft, which shows all that was said, or does not.

    Four in five answers to a right draft leave it as it is, by KEEP or word for word; three in five to a wrong one are
    the caption of the `scene`, one in ten is KEEP, by mistake. The others are mixed rewrites.
    """
    answers = (KEEP, draft if is_right else world.caption(scene), mixed_rewrite(scene, said, spoken, rng))
    return rng.choices(answers, (0.3, 0.5, 0.2) if is_right else (0.1, 0.6, 0.3))[0]


_PHRASE = re.compile(
    rf"({'|'.join(world.COUNTS)}) ({'|'.join(world.SIZES)}) ({'|'.join(world.COLORS)}) "
    rf"({'|'.join(world.SHAPES)})(?:es|s)?"
)
_JOINT = re.compile(rf" (?:and )?({'|'.join(world.RELATIONS)}) | and ")
_BACKGROUND = re.compile(rf"(.*) on a ({'|'.join(world.BACKGROUNDS)}) background")


def read_caption(text: str) -> dict | None:
    """Return the scene of a canonical caption; None if the text is none."""
    whole = _BACKGROUND.fullmatch(text)
    if not whole:
        return None
    body, objects, relations = whole[1], [], []
    while body:
        if objects:
            joint = _JOINT.match(body)
            if not joint:
                return None
            relations += [[0, joint[1], len(objects)]] if joint[1] else []
            body = body[joint.end() :]
        phrase = _PHRASE.match(body)
        if not phrase:
            return None
        count, size, color, shape = phrase.groups()
        objects.append({"shape": shape, "color": color, "size": size, "count": world.COUNTS[count]})
        body = body[phrase.end() :]
    if relations and len(relations) < len(objects) - 1:  # some are of the first group, some are not
        return None
    scene = {"objects": objects, "relations": relations, "background": whole[2]}
    return scene if world.caption(scene) == text else None


def says(text: str, said: dict) -> bool:
    """Return whether a rewrite is a canonical caption of all that the user said: right if the generator is."""
    scene = read_caption(text)
    if scene is None or len(scene["objects"]) != len(said["objects"]):
        return False
    if said["background"] not in (None, scene["background"]):
        return False
    relations = {(first, second): relation for first, relation, second in scene["relations"]}
    relations |= {(second, first): world.RELATIONS[relation][0] for (first, second), relation in relations.items()}
    for order in itertools.permutations(range(len(said["objects"]))):
        groups = [scene["objects"][place] for place in order]
        pairs = zip(said["objects"], groups, strict=True)
        same = all(wanted[name] in (None, group[name]) for wanted, group in pairs for name in (*world.LOOK, "count"))
        if same and all(
            relations.get((order[first], order[second])) == relation for first, relation, second in said["relations"]
        ):
            return True
    return False
