"""Comparison of the images of one rewrite with each other, for `diversity` and `style_consistency`."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def mean_over_others(pairs: np.ndarray, user_prompts: Sequence[str], prompts: Sequence[str]) -> list[float | None]:
    """Return for each image the mean of `pairs` over the other images of its rewrite; None where it is alone.

    Images belong to one rewrite if both prompts are equal. The mean over the images is the mean over their pairs.

    Args:
        pairs: a value for every two images, (images, images); the diagonal does not count.
        user_prompts, prompts: the user prompt and the rewrite of each image.
    """
    members = defaultdict(list)
    for row, rewrite in enumerate(zip(user_prompts, prompts, strict=True)):
        members[rewrite].append(row)
    return [
        float(np.mean([pairs[row, other] for other in members[rewrite] if other != row]))
        if len(members[rewrite]) > 1
        else None
        for row, rewrite in enumerate(zip(user_prompts, prompts, strict=True))
    ]
