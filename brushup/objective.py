"""The objective: rewards transformed, gated, and weighted into the one number that a policy is trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from brushup.config import RewardConfig
from brushup.rewards import check_kwargs, is_image_reward, label, least_pictures, resolve


Transform = Callable[[np.ndarray], np.ndarray]


def clamp(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values under `low` become `low`, those over `high` become `high`."""
    return values.clip(low, high)


def scale(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Maps `low` to 0 and `high` to 1, and goes on beyond them."""
    return (values - low) / (high - low)


TRANSFORMS = {"clamp": clamp, "scale": scale}


@dataclass
class RunningZScore:
    """Values less the mean, over the standard deviation, of all that it has seen (Welford's sums)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def see(self, values: np.ndarray) -> None:
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
    """How the rewards of a rewrite become its total.

    Args:
        weights: of each reward, by label; the columns of the arrays below are in this order.
        transforms: what each reward goes through before it is weighted, in order.
        gates: what a reward must reach, else the total is 0.
        gain_gates: the same for its gain over the user's own prompt at the same seeds.
    """

    weights: dict[str, float]
    transforms: dict[str, list[Transform]] = field(default_factory=dict)
    gates: dict[str, float] = field(default_factory=dict)
    gain_gates: dict[str, float] = field(default_factory=dict)

    @classmethod
    def from_config(cls, args: RewardConfig, weights: Sequence[float]) -> "Objective":
        """What `reward_transforms`, `reward_gates` and `gain_gates` say; `weights` are those of `reward_funcs`.

        Raises:
            ValueError: a reward that does not exist, a gate of one that is not among `reward_funcs`, a gain of a text
                reward, or a value that is not as described; the message starts with the key.
        """
        labels = [label(name) for name in args.reward_funcs]
        if len(set(labels)) < len(labels):
            raise ValueError(f"reward_funcs: two rewards have the same name: {', '.join(labels)}")
        for setting in ("reward_kwargs", "reward_transforms"):  # for rewards that are left out this time, too
            for name in args.by_reward(setting):
                if name not in labels:
                    try:
                        resolve(name)
                    except ValueError as error:
                        raise ValueError(f"{setting}: {error}") from error
        for setting in ("reward_gates", "gain_gates"):
            for name, threshold in args.by_reward(setting).items():
                if label(name) not in labels:
                    raise ValueError(
                        f"{setting}: {name!r} is not among reward_funcs ({', '.join(labels)}): add it there, with "
                        "weight 0 if it should be a gate and nothing else"
                    )
                if isinstance(threshold, bool) or not isinstance(threshold, int | float):
                    raise ValueError(f"{setting}: {name} is {threshold!r}; it must be a number, such as 0.28")
        for name in args.reward_funcs:
            if label(name) in map(label, args.by_reward("gain_gates")) and not is_image_reward(name):
                raise ValueError(f"gain_gates: {name!r} looks at no picture, so there is no gain over the user's own")
        return cls(
            dict(zip(labels, weights, strict=True)),
            {label(name): parse_transforms(name, of) for name, of in args.by_reward("reward_transforms").items()},
            {label(name): float(threshold) for name, threshold in args.by_reward("reward_gates").items()},
            {label(name): float(threshold) for name, threshold in args.by_reward("gain_gates").items()},
        )

    @property
    def names(self) -> list[str]:
        return list(self.weights)

    @property
    def is_plain(self) -> bool:
        """Whether the total is the weighted sum of the rewards as they are."""
        return not (set(self.transforms) & set(self.weights) or self.gates or self.gain_gates)

    def passes(self, rewards: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """Which rows reach all gates. `rewards`, `gains`: (rows, rewards)."""
        reached = np.ones(len(rewards), dtype=bool)
        for values, gates in ((rewards, self.gates), (gains, self.gain_gates)):
            for name, threshold in gates.items():
                reached &= values[:, self.names.index(name)] >= threshold
        return reached

    def is_decided(self, rewards: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """Which rows have all that the total depends on. `rewards`, `gains`: (rows, rewards), NaN where missing."""
        needed = np.array([bool(weight) or name in self.gates for name, weight in self.weights.items()])
        gained = np.array([name in self.gain_gates for name in self.weights])
        return ~(np.isnan(rewards[:, needed]).any(axis=1) | np.isnan(gains[:, gained]).any(axis=1))

    def train_on(
        self, rewards: np.ndarray, gains: np.ndarray, malformed: np.ndarray, failed: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """What TRL weights and sums; it moves the statistics of z-scores on.

        A malformed answer, and a rewrite that a gate holds back, get 0 for each reward, or the worst that any other
        row of the batch has if that is below 0: neither must ever pay. Rewards of weight 0 stay as they are, but are
        0 for malformed answers.

        Args:
            rewards: as the rewards gave them, (rows, rewards) of the whole batch.
            gains: what they are above those of the users' own prompts, likewise; only read if there are gain gates.
            malformed, failed: (rows,); what failed is NaN in the result.

        Returns:
            The values, (rows, rewards), and which rows a gate held back, (rows,).
        """
        values = np.array(rewards, dtype=np.float64)
        scored = ~(malformed | failed)
        for column, name in enumerate(self.names):
            for transform in self.transforms.get(name, ()):
                if isinstance(transform, RunningZScore):
                    transform.see(values[scored, column])
                values[:, column] = transform(values[:, column])
        held_back = scored & ~self.passes(rewards, gains)
        for column, weight in enumerate(self.weights.values()):
            others = np.sign(weight) * values[scored & ~held_back, column]
            values[malformed, column] = 0.0
            if weight:
                values[malformed | held_back, column] = np.sign(weight) * others.min(initial=0.0)
        values[failed] = np.nan
        return values, held_back

    def fixed_totals(self, rewards: np.ndarray, gains: np.ndarray) -> np.ndarray:
        """The total of each row, (rows,), for comparing prompts and steps: see `totals`.

        Args:
            rewards, gains: as for `train_on`.
        """
        values = np.array(rewards, dtype=np.float64)
        for column, name in enumerate(self.names):
            for transform in self.transforms.get(name, ()):
                if not isinstance(transform, RunningZScore):
                    values[:, column] = transform(values[:, column])
        weighted = np.array([bool(weight) for weight in self.weights.values()])
        sums = values[:, weighted] @ np.array(list(self.weights.values()))[weighted]
        return np.where(np.isnan(sums) | self.passes(rewards, gains), sums, 0.0)

    def totals(
        self, rewards: Sequence[dict[str, float] | None], originals: Sequence[dict[str, float] | None]
    ) -> list[float | None]:
        """The total of each prompt, None where rewards that it needs are missing.

        It is 0 where a gate is not reached. A reward with a z-score counts untransformed: a running mean would make
        one validation incomparable with the next.

        Args:
            rewards: by label, of each prompt.
            originals: those of the user's own prompt.
        """
        values, own = (
            np.array([[(row or {}).get(name, np.nan) for name in self.names] for row in rows], dtype=np.float64)
            for rows in (rewards, originals)
        )
        totals = self.fixed_totals(values, values - own)
        decided = self.is_decided(values, values - own)
        return [total if known else None for total, known in zip(totals.tolist(), decided, strict=True)]

    @property
    def z_scores(self) -> dict[str, RunningZScore]:
        """Those among the transforms, by reward: their statistics belong into a checkpoint."""
        return {
            name: transform
            for name, some in self.transforms.items()
            for transform in some
            if isinstance(transform, RunningZScore)
        }


def check_rewards(args: RewardConfig, **images_per_prompt: int) -> None:
    """Raises what is wrong with the rewards that are asked for, before any model is loaded.

    Args:
        args: their settings.
        **images_per_prompt: settings that say how many pictures are drawn of a prompt.

    Raises:
        ValueError: a reward or a keyword argument that does not exist, too few pictures for a reward that compares
            them, or as `Objective.from_config`.
    """
    for name in args.reward_funcs:
        check_kwargs(name, args.kwargs_of_reward(name))
        for setting, count in images_per_prompt.items():
            if count < least_pictures(name):
                raise ValueError(
                    f"{setting} is {count}, but the reward {name!r} compares the pictures of a prompt: set it to "
                    f"{least_pictures(name)} or more"
                )
    Objective.from_config(args, [1.0] * len(args.reward_funcs))


def parse_transforms(name: str, wanted: Any) -> list[Transform]:
    """The transforms that `reward_transforms` has for the reward `name`: `zscore`, or {clamp: ..., scale: ...}.

    Raises:
        ValueError: there is no such transform, or its range is none.
    """
    transforms: list[Transform] = []
    for kind, bounds in ({wanted: True} if isinstance(wanted, str) else dict(wanted)).items():
        where = f"reward_transforms: {kind} of {name}"
        if kind == "zscore" and bounds is True:
            transforms.append(RunningZScore())
        elif kind in TRANSFORMS:
            numbers = isinstance(bounds, list | tuple) and all(isinstance(bound, int | float) for bound in bounds)
            if not numbers or len(bounds) != 2 or not bounds[0] < bounds[1]:
                raise ValueError(f"{where} is {bounds!r}; it must be [low, high], such as [0.1, 0.4]")
            transforms.append(partial(TRANSFORMS[kind], low=bounds[0], high=bounds[1]))
        else:
            raise ValueError(f"{where} is unknown; there is zscore, clamp: [low, high] and scale: [low, high]")
    return transforms
