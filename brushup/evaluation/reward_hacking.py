"""Signs of reward hacking: the reward that is trained on rises, and a monitor of the same rewrites falls.

Optimising a proxy goes well until it no longer does (Gao et al. 2022, arXiv 2210.10760): the proxy rises on, while
the goal has passed its best. So each watched value is compared with its best so far, and a fall since then is a sign
if the reward rose meanwhile. Watched are the rewards of weight 0 (monitors), the checker, and three ways in which
rewrites please a scorer without being better: they grow long, they repeat themselves, or the generator cuts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from brushup.common import mean
from brushup.evaluation.arm import Arm
from brushup.evaluation.compare import paired_difference
from brushup.rewards.repetition import RepetitionReward


MIN_FALL_IN_STD = 0.3  # of a monitor, in standard deviations over rewrites
MIN_RISE = {"length": 0.5, "repetition": 0.1, "cut": 0.1}  # of the length as a share of it


def length_repetition_and_cuts(
    rewrites: Sequence[str], tokens: Sequence[dict[str, int]], limits: dict[str, int]
) -> dict[str, list[float | None]]:
    """Return three values of each rewrite that grow under reward hacking; None where nothing was rendered.

    Args:
        rewrites: the prompts.
        tokens: the length of each for each tokenizer of the generator; empty if it was not rendered.
        limits: the tokens that each tokenizer reads.

    Returns:
        `length`, in tokens of the generator's first tokenizer; `repetition`, the share of three-word sequences that
        repeat another one; `cut`, 1 if no tokenizer of the generator reads the rewrite to its end, else 0.
    """
    unique = RepetitionReward()([[{"role": "assistant", "content": rewrite}] for rewrite in rewrites])
    return {
        "length": [next(iter(counts.values()), None) for counts in tokens],
        "repetition": [1 - share if counts else None for share, counts in zip(unique, tokens, strict=True)],
        "cut": [float(all(counts[n] > limits[n] for n in counts)) if counts else None for counts in tokens],
    }


def distinct_signs(reward_hacking: dict[str, list[str]]) -> list[str]:
    """Return the signs of training and of evaluation, each change once, in the words of training.

    Args:
        reward_hacking: as results.json has it.
    """
    signs = [sign for origin in reward_hacking.values() for sign in origin]
    return list({sign.rsplit(" (", 1)[0]: sign for sign in reversed(signs)}.values())[::-1]


@dataclass(frozen=True)
class Change:
    """A watched value that changed from `before` to `now`, while the reward changed, too."""

    name: str
    before: float
    now: float
    reward_before: float
    reward_now: float
    when: str

    @property
    def worse_by(self) -> float:
        """By how much the value became worse."""
        return self.now - self.before if self.name in MIN_RISE else self.before - self.now

    def matters(self, spread: float) -> bool:
        """Return whether the change is large enough to name. `spread`: the standard deviation over rewrites."""
        least = MIN_RISE.get(self.name, MIN_FALL_IN_STD * spread) * (self.before if self.name == "length" else 1)
        return self.worse_by > 0 and self.worse_by >= least

    def __str__(self) -> str:
        verb = "climbed" if self.name in MIN_RISE else "fell"
        return (
            f"{self.name} {verb} from {self.before:.3f} to {self.now:.3f} while the reward rose from "
            f"{self.reward_before:.3f} to {self.reward_now:.3f} ({self.when})"
        )


def held_out_signs(
    earlier: dict[str, Arm], later: str, arm: Arm, monitors: Sequence[str], limits: dict[str, int]
) -> list[Change]:
    """Return the signs of reward hacking on held-out prompts, each against the earlier policy with the best value.

    The reward is higher and the watched value is worse, both by paired 95 % intervals over the prompts.

    Args:
        earlier: the arms before, by name.
        later: the name of `arm`.
        monitors: rewards of weight 0.
        limits: the tokens that each tokenizer of the generator reads.
    """
    values = {name: _watched(each_arm, monitors, limits) for name, each_arm in (earlier | {later: arm}).items()}
    signs = []
    for watched, now in values[later].items():
        means = {name: average for name in earlier if (average := mean(values[name][watched])) is not None}
        if not means:
            continue
        best = (min if watched in MIN_RISE else max)(means, key=means.get)
        before = earlier[best]
        rise = paired_difference(arm.totals, before.totals)["ci95"]
        change = paired_difference(now, values[best][watched])["ci95"]
        if not rise or not change or rise[0] <= 0 or (change[0] <= 0 if watched in MIN_RISE else change[1] >= 0):
            continue
        sign = Change(
            watched,
            *(means[best], mean(now)),
            *(mean(before.totals), mean(arm.totals)),
            f"held-out prompts, {later} against {best}",
        )
        if sign.matters(np.std([value for value in values[best][watched] if value is not None])):
            signs.append(sign)
    return signs


def _watched(arm: Arm, monitors: Sequence[str], limits: dict[str, int]) -> dict[str, list[float | None]]:
    """Return each watched value of each prompt."""
    return (
        {name: arm.scores(name) for name in monitors}
        | {"checker_accuracy": arm.checker_accuracy}
        | length_repetition_and_cuts(arm.prompts, arm.tokens, limits)
    )
