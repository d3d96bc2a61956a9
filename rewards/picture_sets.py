"""Pictures of one rewrite, compared with each other: what `diversity` and `style_consistency` have in common."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np


def mean_over_others(pairs: np.ndarray, user_prompts: Sequence[str], prompts: Sequence[str]) -> list[float | None]:
    """For each picture the mean of `pairs` over the other pictures of its rewrite; None where it has no others.

    Pictures are of one rewrite if both prompts are equal. The mean over them is the mean over their pairs.

    Args:
        pairs: a value for each two pictures, (pictures, pictures); the diagonal does not count.
        user_prompts, prompts: what each picture was asked for, and drawn from.
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
