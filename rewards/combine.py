"""The objective: rewards are transformed, gated, and weighted into the one number that a policy is trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from brushup.rewards.registry import RewardSpec


Transform = Callable[[np.ndarray], np.ndarray]


def clamp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the values with those below `low` raised to it and those above `high` lowered to it."""
    return values.clip(low, high)


def scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return the values mapped linearly so that `low` becomes 0 and `high` 1; values outside go beyond 0 and 1."""
    return (values - low) / (high - low)


TRANSFORMS = {"clamp": clamp, "scale": scale}
SPOILING = 2.0  # a point that a revision loses weighs as much as two won: by luck alone, changes do not pay


@dataclass
class RunningZScore:
    """A transform that subtracts the mean of all values seen so far and divides by their standard deviation.

    Attributes:
        count, mean, squares: Welford's sums over the values seen.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def see(self, values: np.ndarray) -> None:
        """Add the finite values to the statistics."""
        for value in values[np.isfinite(values)].tolist():
            self.count += 1
            step = value - self.mean
            self.mean += step / self.count
            self.squares += step * (value - self.mean)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        deviation = (self.squares / max(1, self.count - 1)) ** 0.5
        return (values - self.mean) / (deviation + 1e-4)


@dataclass
class Objective:
    """The way from the rewards of a rewrite to its total.

    All arrays below have a column per reward, in the order of `weights`.

    Args:
        weights: of each reward, by name.
        transforms: the steps that each reward goes through, in order, before it is weighted.
        gates: the value below which a reward makes the total 0.
        gain_gates: the same for a reward's gain over the image of the user's own prompt, or of the draft that it
            revises, at the same seed.
    """

    weights: dict[str, float]
    transforms: dict[str, list[Transform]] = field(default_factory=dict)
    gates: dict[str, float] = field(default_factory=dict)
    gain_gates: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_specs(cls, specs: Sequence[RewardSpec]) -> "Objective":
        """Return the objective of these rewards.

        Raises:
            ValueError: an unknown transform, or one with a wrong range.
        """
        return cls(
            {spec.name: spec.weight for spec in specs},
            {spec.name: parse_transforms(spec.name, spec.transforms) for spec in specs if spec.transforms},
            {spec.name: float(spec.gate) for spec in specs if spec.gate is not None},
            {spec.name: float(spec.gain_gate) for spec in specs if spec.gain_gate is not None},
        )

    @property
    def names(self) -> list[str]:
        """The rewards' names, in the order of the columns."""
        return list(self.weights)

    @property
    def monitors(self) -> list[str]:
        """The names of the rewards with weight 0."""
        return [name for name, weight in self.weights.items() if not weight]

    @property
    def is_plain(self) -> bool:
        """Whether the total is the weighted sum of the untransformed rewards."""
        return not (set(self.transforms) & set(self.weights) or self.gates or self.gain_gates)

    def passes(self, rewards: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """Return which rows reach all gates, bool, (rows,). `rewards`, `gains`: (rows, rewards)."""
        reached = np.ones(len(rewards), dtype=bool)
        for values, gates in ((rewards, self.gates), (gains, self.gain_gates)):
            for name, threshold in gates.items():
                reached &= values[:, self.names.index(name)] >= threshold
        return reached

    def has_all_inputs(self, rewards: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """Return which rows have every value that the total depends on, bool, (rows,).

        Args:
            rewards, gains: (rows, rewards), NaN where missing.
        """
        needed = np.array([bool(weight) or name in self.gates for name, weight in self.weights.items()])
        gained = np.array([name in self.gain_gates for name in self.weights])
        return ~(np.isnan(rewards[:, needed]).any(axis=1) | np.isnan(gains[:, gained]).any(axis=1))

    def shape_rewards(
        self,
        rewards: np.ndarray,
        gains: np.ndarray,
        malformed: np.ndarray,
        failed: np.ndarray,
        revised: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rewards that TRL weights and sums: transformed, gated, and NaN for failed rows.

        A malformed answer, and a rewrite that a gate holds back, get 0 for each reward, or the lowest value of the
        batch's other rows if that is below 0, so that neither ever pays. Rewards of weight 0 keep their values, but
        are 0 for malformed answers. The statistics of z-scores take in the batch first.

        An image reward of a revision is its gain over the draft, `SPOILING` times as much if it is a loss. So the
        draft as it is has 0, and a change whose gain is luck less than 0 on average.

        Args:
            rewards: as the rewards returned them, (rows, rewards) of the whole batch.
            gains: over the images of the users' own prompts, or the drafts, (rows, rewards); only read if there are
                gain gates or revisions.
            malformed, failed: bool, (rows,).
            revised: which rows revise a draft, bool, (rows,); default none.

        Returns:
            The values, (rows, rewards), and which rows a gate held back, bool, (rows,).
        """
        values = np.array(rewards, dtype=np.float64)
        scored = ~(malformed | failed)
        for column, name in enumerate(self.names):
            for transform in self.transforms.get(name, ()):
                if isinstance(transform, RunningZScore):
                    transform.see(values[scored, column])
                values[:, column] = transform(values[:, column])
        if revised is not None and revised.any():
            values = self._gains_over_drafts(values, rewards, gains, revised)
        held_back = scored & ~self.passes(rewards, gains)
        for column, weight in enumerate(self.weights.values()):
            others = np.sign(weight) * values[scored & ~held_back, column]
            values[malformed, column] = 0.0
            if weight:
                values[malformed | held_back, column] = np.sign(weight) * others.min(initial=0.0)
        values[failed] = np.nan
        return values, held_back

    def _gains_over_drafts(
        self, values: np.ndarray, rewards: np.ndarray, gains: np.ndarray, revised: np.ndarray
    ) -> np.ndarray:
        """Return the transformed rewards, (rows, rewards), with those of revisions as gains over their drafts."""
        before = np.array(rewards - gains, dtype=np.float64)
        for column, name in enumerate(self.names):
            for transform in self.transforms.get(name, ()):
                before[:, column] = transform(before[:, column])
        gained = values - before
        gained *= np.where(gained * np.sign(list(self.weights.values())) < 0, SPOILING, 1.0)
        weighted = np.array([bool(weight) for weight in self.weights.values()])
        return np.where(revised[:, None] & weighted & ~np.isnan(gained), gained, values)

    def totals_without_zscore(self, rewards: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """Return the total of each row, (rows,), with z-scores left out.

        A running mean would make the totals of one step incomparable with those of the next.

        Args:
            rewards, gains: as for `shape_rewards`.
        """
        values = np.array(rewards, dtype=np.float64)
        for column, name in enumerate(self.names):
            for transform in self.transforms.get(name, ()):
                if not isinstance(transform, RunningZScore):
                    values[:, column] = transform(values[:, column])
        weighted = np.array([bool(weight) for weight in self.weights.values()])
        sums = values[:, weighted] @ np.array(list(self.weights.values()))[weighted]
        return np.where(np.isnan(sums) | self.passes(rewards, gains), sums, 0.0)

    def totals_by_prompt(
        self, rewards: Sequence[dict[str, float] | None], originals: Sequence[dict[str, float] | None]
    ) -> list[float | None]:
        """Return the total of each held-out prompt: `totals_without_zscore`, or None where a needed reward is missing.

        Args:
            rewards: the rewards of each prompt, by name.
            originals: those of the user's own prompt in its place.
        """
        values, before = (
            np.array([[(row or {}).get(name, np.nan) for name in self.names] for row in rows], dtype=np.float64)
            for rows in (rewards, originals)
        )
        totals = self.totals_without_zscore(values, values - before)
        known = self.has_all_inputs(values, values - before)
        return [total if is_known else None for total, is_known in zip(totals.tolist(), known, strict=True)]

    def state(self) -> dict[str, list[dict[str, float]]]:
        """Return the statistics of the z-scores, by reward, as JSON can hold them: for a checkpoint."""
        return {
            name: [vars(transform).copy() for transform in z_scores] for name, z_scores in self._z_scores().items()
        }

    def load_state(self, state: dict[str, list[dict[str, float]]]) -> None:
        """Go on with the statistics that `state` returned; a reward that it lacks keeps its own."""
        for name, z_scores in self._z_scores().items():
            for z_score, statistics in zip(z_scores, state.get(name, ())):  # noqa: B905, an empty state has none
                vars(z_score).update(statistics)

    def _z_scores(self) -> dict[str, list[RunningZScore]]:
        z_scores = {
            name: [transform for transform in transforms if isinstance(transform, RunningZScore)]
            for name, transforms in self.transforms.items()
        }
        return {name: transforms for name, transforms in z_scores.items() if transforms}


def parse_transforms(name: str, setting: dict[str, Any] | str) -> list[Transform]:
    """Return the transforms of a reward, in order.

    Args:
        name: of the reward, for the error.
        setting: its entry in `reward_transforms`: "zscore", or e.g. {"clamp": [0.1, 0.4], "scale": [0.1, 0.4]}.

    Raises:
        ValueError: an unknown transform, or bounds that are not [low, high] with low < high.
    """
    transforms: list[Transform] = []
    for kind, bounds in ({setting: True} if isinstance(setting, str) else setting).items():
        where = f"reward_transforms: {kind} of {name}"
        if kind == "zscore" and bounds is True:
            transforms.append(RunningZScore())
        elif kind in TRANSFORMS:
            are_numbers = isinstance(bounds, list | tuple) and all(isinstance(bound, int | float) for bound in bounds)
            if not are_numbers or len(bounds) != 2 or not bounds[0] < bounds[1]:
                raise ValueError(f"{where} is {bounds!r}; it must be [low, high], such as [0.1, 0.4]")
            transforms.append(partial(TRANSFORMS[kind], low=bounds[0], high=bounds[1]))
        else:
            raise ValueError(f"{where} is unknown; there is zscore, clamp: [low, high] and scale: [low, high]")
    return transforms
