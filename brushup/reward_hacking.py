"""Reward hacking: the reward that is trained on rises, and what it stands for falls.

Optimising a proxy goes well until it no longer does (Gao et al. 2022, arXiv 2210.10760): the proxy climbs on, while
what is meant has passed its best. So what is watched is compared with where it was best, and a fall since then is a
sign if the reward rose meanwhile. Watched are the rewards of weight 0 (monitors), the checker, and three ways in which
rewrites please a scorer without being better: they grow, they repeat themselves, or the generator cuts them.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from accelerate.logging import get_logger
from scipy.stats import ttest_ind
from transformers import TrainerCallback

from brushup.comparison import paired_difference
from brushup.evaluation import Arm
from brushup.rewards.repetition import RepetitionReward


logger = get_logger(__name__)

FALL = 0.3  # of the standard deviation over rewrites: by so much a monitor must have fallen
CLIMBS = {"length": 0.5, "repetition": 0.1, "cut": 0.1}  # by so much these must have risen; the length in shares of it
P_VALUE = 1e-5  # of one-sided t-tests; small, since at each step the best of all windows before is picked


def excesses(rewrites: Sequence[str], tokens: Sequence[dict[str, int]], limits: dict[str, int]) -> dict[str, list]:
    """What rewrites grow in without being better, each with None where nothing was drawn.

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


def signs_in(results: dict[str, Any]) -> list[str]:
    """What results.json says of it, in training and in evaluation; the same figures only once."""
    signs = [sign for some in results.get("reward_hacking", {}).values() for sign in some]
    return list({sign.rsplit(" (", 1)[0]: sign for sign in reversed(signs)}.values())[::-1]


@dataclass(frozen=True)
class Change:
    """Something watched that was `before` and is `now`, while the reward went from the one to the other."""

    name: str
    before: float
    now: float
    reward_before: float
    reward_now: float
    when: str

    @property
    def worse_by(self) -> float:
        return self.now - self.before if self.name in CLIMBS else self.before - self.now

    def matters(self, spread: float) -> bool:
        """Whether it is large enough to speak of. `spread`: the standard deviation over rewrites."""
        least = CLIMBS.get(self.name, FALL * spread) * (self.before if self.name == "length" else 1)
        return self.worse_by > 0 and self.worse_by >= least

    def __str__(self) -> str:
        verb = "climbed" if self.name in CLIMBS else "fell"
        return (
            f"{self.name} {verb} from {self.before:.3f} to {self.now:.3f} while the reward rose from "
            f"{self.reward_before:.3f} to {self.reward_now:.3f} ({self.when})"
        )


def held_out_signs(
    earlier: dict[str, Arm], later: str, arm: Arm, monitors: Sequence[str], limits: dict[str, int]
) -> list[Change]:
    """The signs of reward hacking on held-out prompts, each against the earlier policy that was best in that respect.

    The reward is higher and what is watched is worse, both by paired 95 % intervals over the prompts.

    Args:
        earlier: the arms before, by what to call them.
        later: what to call `arm`.
        monitors: rewards of weight 0.
        limits: how many tokens each tokenizer of the generator reads.
    """
    values = {name: _watched(one, monitors, limits) for name, one in (earlier | {later: arm}).items()}
    signs = []
    for watched, now in values[later].items():
        means = {name: mean for name in earlier if (mean := _mean(values[name][watched])) is not None}
        if not means:
            continue
        best = (min if watched in CLIMBS else max)(means, key=means.get)
        before = earlier[best]
        rise = paired_difference(arm.totals, before.totals)["ci95"]
        change = paired_difference(now, values[best][watched])["ci95"]
        if not rise or not change or rise[0] <= 0 or (change[0] <= 0 if watched in CLIMBS else change[1] >= 0):
            continue
        sign = Change(
            watched,
            *(means[best], _mean(now)),
            *(_mean(before.totals), _mean(arm.totals)),
            f"held-out prompts, {later} against {best}",
        )
        if sign.matters(np.std([value for value in values[best][watched] if value is not None])):
            signs.append(sign)
    return signs


def _watched(arm: Arm, monitors: Sequence[str], limits: dict[str, int]) -> dict[str, list[float | None]]:
    """A value for each prompt of all that is watched."""
    return (
        {name: arm.scores(name) for name in monitors}
        | {"right pictures": arm.right}
        | excesses(arm.prompts, arm.tokens, limits)
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


class RewardHackingWatch(TrainerCallback):
    """Looks for reward hacking while a policy trains, warns of it, and stops the run if it is asked to.

    Over the last `window` batches of rewrites, against the `window` batches in which what is watched was best: the
    reward is higher and what is watched is worse, both with p < 0.00001 in Welch's t-test over the batches' means, and
    the latter by enough to matter (see `FALL` and `CLIMBS`). Likewise between validations, by paired intervals.

    Args:
        window: in batches of rewrites, at least 2; 0: it does not look.
        stop: end training at the first sign, with a checkpoint.

    Raises:
        ValueError: a window of 1 or less than 0.
    """

    def __init__(self, window: int, stop: bool):
        if window < 0 or window == 1:
            raise ValueError(f"reward_hacking_window is {window}; it must be at least 2, or 0 to not look")
        self.window = window
        self.stop = stop
        self.batches: list[dict[str, list[float]]] = []
        """Of each batch the mean and the standard deviation over its rewrites, by what is watched, and its step."""
        self._signs: dict[str, dict[str, Change]] = {"training": {}, "validation": {}}
        self.found: list[str] = []
        """All that was warned of."""

    def record(self, step: int, reward: np.ndarray, watched: dict[str, np.ndarray]) -> None:
        """Takes a batch of rewrites: their total and what is watched, each (rows,), NaN where nothing was scored."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rows that are all NaN
            batch = {name: [float(np.nanmean(v)), float(np.nanstd(v))] for name, v in watched.items()}
            self.batches.append(batch | {"reward": [float(np.nanmean(reward)), 0.0], "step": [step, 0.0]})
        if self.window and len(self.batches) >= 2 * self.window:
            self._tell("training", [sign for name in watched if (sign := self._sign(name))])

    def validated(self, signs: Sequence[Change]) -> None:
        """Takes the `held_out_signs` of the last validation."""
        self._tell("validation", signs)

    @property
    def signs(self) -> dict[str, Change]:
        """What is wrong now, by name."""
        return self._signs["training"] | self._signs["validation"]

    def _sign(self, name: str) -> Change | None:
        unknown = [np.nan, np.nan]  # a resumed run may watch what the run before did not
        means = np.array([batch.get(name, unknown)[0] for batch in self.batches])
        rewards = np.array([batch["reward"][0] for batch in self.batches])
        windows = np.lib.stride_tricks.sliding_window_view(means, self.window)[: -self.window]
        best = np.argmin if name in CLIMBS else np.argmax
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that do not vary, or are all NaN
            averages = np.nanmean(windows, axis=1)
            averages[np.isnan(windows).mean(axis=1) > 0.5] = np.nan  # too little is known to call it the best
            if np.isnan(averages).all():
                return None
            start = int(best(np.where(np.isnan(averages), np.inf if name in CLIMBS else -np.inf, averages)))
            then, now = slice(start, start + self.window), slice(-self.window, None)
            change = Change(
                name,
                *(float(np.nanmean(some[part])) for some in (means, rewards) for part in (then, now)),
                f"training steps {self._step(-self.window)} to {self._step(-1)} against {self._step(start)} to "
                f"{self._step(start + self.window - 1)}",
            )
            worse = "greater" if name in CLIMBS else "less"
            p_values = [
                ttest_ind(some[now], some[then], equal_var=False, alternative=side, nan_policy="omit").pvalue
                for some, side in ((rewards, "greater"), (means, worse))
            ]
        spread = float(np.nanmean([batch.get(name, unknown)[1] for batch in self.batches[then]]))
        return change if np.max(p_values) < P_VALUE and change.matters(spread) else None

    def _step(self, batch: int) -> int:
        return int(self.batches[batch]["step"][0])

    def _tell(self, where: str, signs: Sequence[Change]) -> None:
        for sign in signs:
            if sign.name not in self._signs[where]:
                self.found.append(str(sign))
                logger.warning(f"reward hacking? {sign}")
        self._signs[where] = {sign.name: sign for sign in signs}

    def on_step_end(self, args, state, control, **kwargs):
        if self.stop and self.signs:
            control.should_save = control.should_training_stop = True

    on_evaluate = on_step_end
