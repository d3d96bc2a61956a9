"""The watch for reward hacking while a policy trains."""

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import ttest_ind
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from brushup.evaluation.arm import Arm
from brushup.evaluation.reward_hacking import MIN_RISE, Change, held_out_signs
from brushup.rewards.combine import Objective
from brushup.training.scoring import ScoredBatch


logger = logging.getLogger(__name__)

P_VALUE = 1e-5  # of one-sided t-tests; small, since at each step the best of all windows before is picked


class RewardHackingWatch(TrainerCallback, ExportableState):
    """Warns of reward hacking, and stops the run with a checkpoint if it is told to.

    The last `window` batches are compared with the `window` batches in which a watched value was best: it is a sign
    if the reward is higher and the watched value is worse, both with p < 0.00001 in Welch's t-test over the batches'
    means, and the latter by enough to matter (see `Change.matters`). Validations are compared by paired intervals.

    Args:
        window: in batches, at least 2; 0: it does not look. A training run sets both anew, from its settings.
        stop: whether training ends at the first sign.

    Attributes:
        batches: the mean and the standard deviation over its rewrites of each watched value, and the step, by batch.
        found: all signs so far, in words.

    """

    def __init__(self, window: int = 0, stop: bool = False):
        self.window = window
        self.stop = stop
        self.batches: list[dict[str, list[float]]] = []
        self.found: list[str] = []
        self._signs: dict[str, dict[str, Change]] = {"training": {}, "validation": {}}

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"batches": self.batches, "found": self.found}}

    def on_train_begin(self, args, state, control, **kwargs):
        # A restored instance knows the batches of its checkpoint; the settings are those of this run.
        self.window, self.stop = args.reward_hacking_window, args.stop_on_reward_hacking

    def see(self, batch: ScoredBatch, objective: Objective) -> dict[str, float]:
        """Look at all rows of an optimizer step, and return the metrics `reward_hacking/*`: 1 for a sign, else 0."""
        watched = {name: batch.rewards[:, objective.names.index(name)] for name in objective.monitors} | batch.growth
        totals = objective.totals_without_zscore(batch.rewards, batch.gains)
        scored = batch.scored
        self.record(batch.step + 1, totals[scored], {name: values[scored] for name, values in watched.items()})
        return {f"reward_hacking/{name}": float(name in self.signs) for name in watched}

    def record(self, step: int, rewards: np.ndarray, watched: dict[str, np.ndarray]) -> None:
        """Take the totals and the watched values of a batch, each (rows,), NaN where nothing was scored."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rows that are all NaN
            batch = {name: [float(np.nanmean(v)), float(np.nanstd(v))] for name, v in watched.items()}
            self.batches.append(batch | {"reward": [float(np.nanmean(rewards)), 0.0], "step": [step, 0.0]})
        if self.window and len(self.batches) >= 2 * self.window:
            self._tell("training", [sign for name in watched if (sign := self._sign(name))])

    def see_validation(
        self, step: int, arms: dict[int, Arm], objective: Objective, token_limits: dict[str, int]
    ) -> dict[str, float]:
        """Compare the validation of this step with those before it, and return the metric: the number of signs.

        Args:
            step: of the validation.
            arms: the outcomes of all validations so far, by step.
            objective: names the monitors.
            token_limits: as the worker tells them.
        """
        earlier = {f"step {before}": arms[before] for before in sorted(arms) if before < step}
        looks = earlier and self.window
        signs = held_out_signs(earlier, f"step {step}", arms[step], objective.monitors, token_limits) if looks else []
        self._tell("validation", signs)
        return {"reward_hacking": float(len(signs))}

    @property
    def signs(self) -> dict[str, Change]:
        """The signs at this moment, by name."""
        return self._signs["training"] | self._signs["validation"]

    def _sign(self, name: str) -> Change | None:
        """Return the change of this value since its best window, if it is a sign of reward hacking."""
        unknown = [np.nan, np.nan]  # a resumed run may watch a value that the run before did not
        means = np.array([batch.get(name, unknown)[0] for batch in self.batches])
        rewards = np.array([batch["reward"][0] for batch in self.batches])
        windows = np.lib.stride_tricks.sliding_window_view(means, self.window)[: -self.window]
        best = np.argmin if name in MIN_RISE else np.argmax
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values that do not vary, or are all NaN
            averages = np.nanmean(windows, axis=1)
            averages[np.isnan(windows).mean(axis=1) > 0.5] = np.nan  # too little is known to call it the best
            if np.isnan(averages).all():
                return None
            start = int(best(np.where(np.isnan(averages), np.inf if name in MIN_RISE else -np.inf, averages)))
            then, now = slice(start, start + self.window), slice(-self.window, None)
            change = Change(
                name,
                *(float(np.nanmean(values[part])) for values in (means, rewards) for part in (then, now)),
                f"training steps {self._step(-self.window)} to {self._step(-1)} against {self._step(start)} to "
                f"{self._step(start + self.window - 1)}",
            )
            worse = "greater" if name in MIN_RISE else "less"
            p_values = [
                ttest_ind(values[now], values[then], equal_var=False, alternative=side, nan_policy="omit").pvalue
                for values, side in ((rewards, "greater"), (means, worse))
            ]
        spread = float(np.nanmean([batch.get(name, unknown)[1] for batch in self.batches[then]]))
        return change if np.max(p_values) < P_VALUE and change.matters(spread) else None

    def _step(self, batch: int) -> int:
        return int(self.batches[batch]["step"][0])

    def _tell(self, origin: str, signs: Sequence[Change]) -> None:
        for sign in signs:
            if sign.name not in self._signs[origin]:
                self.found.append(str(sign))
                logger.warning(f"reward hacking? {sign}")
        self._signs[origin] = {sign.name: sign for sign in signs}

    def on_step_end(self, args, state, control, **kwargs):
        if self.stop and self.signs:
            control.should_save = control.should_training_stop = True

    on_evaluate = on_step_end
