"""GenEval's rules, as pure functions of what a detector found: what counts, where it is, whether a row is fulfilled.

They are those of evaluation/evaluate_images.py in github.com/djghosh13/geneval (at af4902f).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np


MAX_OBJECTS = 16  # of a class
POSITION_THRESHOLD = 0.1  # of the summed widths or heights: the offset that does not count


class Detection(NamedTuple):
    """An object that was found.

    Attributes:
        name: of its class.
        confidence: 0..1.
        box: left, top, right, bottom, in pixels.
        mask: its pixels, bool, (height, width) of the image; None if the detector finds boxes only.
    """

    name: str
    confidence: float
    box: tuple[float, float, float, float]
    mask: np.ndarray | None = None


def objects_by_class(detections: Iterable[Detection], confidence: float) -> dict[str, list[Detection]]:
    """Return the surest `MAX_OBJECTS` of each class above the confidence, the surest first.

    Overlapping ones all count: GenEval's threshold of overlap is 1, so that nothing is suppressed.
    """
    objects = defaultdict(list)
    for detection in sorted(detections, key=lambda detection: detection.confidence, reverse=True):
        if detection.confidence > confidence:
            objects[detection.name].append(detection)
    return {name: found[:MAX_OBJECTS] for name, found in objects.items()}


def relations(box: tuple, other: tuple) -> set[str]:
    """Return where the first box is, seen from the other: none, one or two of left of, right of, above, below.

    The offset of the centres is shortened, along each axis, by `POSITION_THRESHOLD` of the summed sizes. A relation
    holds if what is left is more than half of the whole distance.
    """
    first, second = np.reshape(box, (2, 2)), np.reshape(other, (2, 2))
    offset = first.mean(axis=0) - second.mean(axis=0)
    sizes = np.abs(first[1] - first[0]) + np.abs(second[1] - second[0])
    shortened = np.maximum(np.abs(offset) - POSITION_THRESHOLD * sizes, 0) * np.sign(offset)
    if np.all(np.abs(shortened) < 1e-3):
        return set()
    x, y = shortened / np.linalg.norm(offset)
    holds = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {relation for relation, true in holds.items() if true}


def is_right(
    objects: dict[str, list[Detection]],
    include: list[dict],
    exclude: list[dict] | None,
    colors_of: Callable[[list[Detection]], list[str]],
) -> bool:
    """Return whether the objects have all that `include` asks for, and nothing that `exclude` forbids.

    Args:
        objects: of `objects_by_class`.
        include: each entry asks for `count` objects of a `class`. The surest so many must all have the `color`, if it
            has one, and for its `position`, [relation, index], stand so to all that an earlier entry found.
        exclude: each entry forbids `count` or more objects of a `class`.
        colors_of: the colour of each of some objects of one class; only asked where a colour is.
    """
    matched: list[list[Detection] | None] = []  # what each entry found; None where that is not as it asks
    for wanted in include:
        count = wanted["count"]
        found = objects.get(wanted["class"], [])[:count]
        right = len(found) == count
        if right and wanted.get("color"):  # a table may fill up what an entry lacks with None
            right = colors_of(found).count(wanted["color"]) == count
        if right and wanted.get("position"):
            relation, index = wanted["position"]
            others = matched[index]
            right = others is not None and all(
                relation in relations(one.box, other.box) for one in found for other in others
            )
        matched.append(found if right else None)
    too_many = any(len(objects.get(unwanted["class"], [])) >= unwanted["count"] for unwanted in exclude or [])
    return None not in matched and not too_many
