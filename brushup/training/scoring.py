"""A generation batch with its rewards: the values to train on, the failure limit, and the metrics."""

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from accelerate.utils import gather, gather_object
from trl import GRPOTrainer

from brushup.evaluation.reward_hacking import length_repetition_and_cuts
from brushup.rewards.combine import Objective
from brushup.training.rollout import RenderedRows, Rollout, current_prompt


logger = logging.getLogger(__name__)


@dataclass
class ScoredBatch:
    """All rows of all ranks of a generation batch, alike on each rank.

    Attributes:
        step: the optimizer step that trains on them.
        rewards: as the rewards gave them, (rows, rewards), NaN where there is none.
        gains: over the image of the user prompt, or of the draft, (rows, rewards), NaN where unknown.
        values: the rewards to train on, (rows, rewards), NaN for a failed row.
        malformed, kept, revised, failed, gated: bool, (rows,); `kept` rows left the user prompt, or the draft, as it
            is, `revised` ones are of the second turn, `gated` ones missed a gate.
        growth: length, repetition and cut of the rewrites, each (rows,), NaN where nothing was rendered.
        tokens_cut: by tokenizer, the tokens that it does not read, (rows,), NaN where nothing was rendered.
        errors: of the machine and of the rewards.
        seconds: from the submission of the rewrites to their last image, on this rank.
    """

    step: int
    rewards: np.ndarray
    gains: np.ndarray
    values: np.ndarray
    malformed: np.ndarray
    kept: np.ndarray
    revised: np.ndarray
    failed: np.ndarray
    gated: np.ndarray
    growth: dict[str, np.ndarray]
    tokens_cut: dict[str, np.ndarray]
    errors: list[str]
    seconds: float

    @classmethod
    def gather(
        cls,
        rollout: Rollout,
        rendered: RenderedRows,
        rewards: torch.Tensor,
        objective: Objective,
        token_limits: dict[str, int],
    ) -> "ScoredBatch":
        """Return the batch over all ranks; they call it together.

        Args:
            rollout, rendered: of this rank.
            rewards: of all ranks, (rows, rewards), as `GRPOTrainer._calculate_rewards` returns them.
            objective: makes of them the values to train on, and moves its z-scores on.
            token_limits: the tokens that each tokenizer of the generator reads.
        """
        tokens = rendered.tokens
        growth = length_repetition_and_cuts([rewrite or "" for rewrite in rollout.rewrites], tokens, token_limits)
        cut = {
            name: [max(0, counts[name] - limit) if name in counts else math.nan for counts in tokens]
            for name, limit in token_limits.items()
        }
        columns = {
            "malformed": [rewrite is None for rewrite in rollout.rewrites],
            "kept": [
                rewrite == current_prompt(row) for rewrite, row in zip(rollout.rewrites, rollout.rows, strict=True)
            ],
            "revised": [row.get("draft") is not None for row in rollout.rows],
            "failed": [
                any(result.error for result in [*results, *rendered.draft_results(row)])
                for results, row in zip(rendered.results, rollout.rows, strict=True)
            ],
            **{name: [math.nan if value is None else value for value in values] for name, values in growth.items()},
            **{f"cut {name}": values for name, values in cut.items()},
        }
        local = np.column_stack([rendered.gains(rollout.rows, objective.names), *columns.values()])
        table = gather(torch.tensor(local, dtype=torch.float32, device=rewards.device)).cpu().numpy()
        count = len(objective.names)
        gains, of = table[:, :count], dict(zip(columns, table[:, count:].T, strict=True))
        raw = rewards.masked_fill(~rewards.isfinite(), torch.nan).cpu().numpy()
        malformed = of["malformed"].astype(bool)
        revised = of["revised"].astype(bool)
        failed = of["failed"].astype(bool) | ~(malformed | objective.has_all_inputs(raw, gains))
        values, gated = objective.shape_rewards(raw, gains, malformed, failed, revised)
        return cls(
            *(rollout.step, raw, gains, values, malformed, of["kept"].astype(bool), revised, failed, gated),
            {name: of[name] for name in growth},
            {name: of[f"cut {name}"] for name in cut},
            gather_object(rendered.errors),
            rendered.seconds,
        )

    @classmethod
    def joined(cls, batches: "Sequence[ScoredBatch]") -> "ScoredBatch":
        """Return the rows of all batches of an optimizer step as one batch."""
        names = ("rewards", "gains", "values", "malformed", "kept", "revised", "failed", "gated")
        arrays = [np.concatenate([vars(batch)[name] for batch in batches]) for name in names]
        dicts = [
            {key: np.concatenate([vars(batch)[name][key] for batch in batches]) for key in vars(batches[0])[name]}
            for name in ("growth", "tokens_cut")
        ]
        errors = [error for batch in batches for error in batch.errors]
        return cls(batches[0].step, *arrays, *dicts, errors, max(batch.seconds for batch in batches))

    @property
    def scored(self) -> np.ndarray:
        """Which rows are neither malformed nor failed, (rows,)."""
        return ~(self.malformed | self.failed)


class FailureLimit:
    """Warns of rows that are left out, and raises once too many batches in a row had no row that could be scored."""

    def __init__(self, max_failed_batches: int):
        self.max_failed_batches = max_failed_batches
        self.failed_batches = 0

    def wants_it_again(self, rendered: RenderedRows) -> bool:
        """Return whether a batch should be rendered again, on all ranks alike: no job of any rank was scored.

        Such a batch counts towards the limit; the last that it allows is left to `check`, so no step trains on it.
        """
        errors = [error for rank in gather_object([rendered.outcomes]) for error in rank]
        if not errors or None in errors or self.failed_batches + 1 >= self.max_failed_batches:
            return False
        self.failed_batches += 1
        logger.warning(f"nothing of this batch was rendered, so it is rendered again: {errors[0]}")
        return True

    def check(self, batch: ScoredBatch) -> str | None:
        """Return the error that should end training on all ranks alike; None if it goes on."""
        if batch.errors:
            kinds = "; ".join(f"{count} x {error}" for error, count in Counter(batch.errors).most_common(3))
            logger.warning(f"{batch.failed.sum()} of {len(batch.failed)} rows are left out of this batch: {kinds}")
        needs_no_image = batch.malformed | (batch.revised & batch.kept)
        nothing_scored = bool(batch.failed.any() and (batch.failed | needs_no_image).all())
        self.failed_batches = self.failed_batches + 1 if nothing_scored else 0
        if self.failed_batches < self.max_failed_batches:
            return None
        reason = batch.errors[0] if batch.errors else "a reward gave None"
        return (
            f"no rewrite of the last {self.failed_batches} batches could be scored (max_failed_batches="
            f"{self.max_failed_batches}); the worker said: {reason}"
        )


def log_batch(
    trainer: GRPOTrainer, batch: ScoredBatch, rollout: Rollout, objective: Objective, gained: Sequence[str]
) -> None:
    """Log the metrics and the completions' columns that TRL does not know.

    Args:
        trainer: gets the metrics.
        batch: of all ranks.
        rollout: of this rank.
        objective: with transforms or gates, the rewards before them are logged as `raw_rewards/*`.
        gained: the image rewards whose gain over the user prompt, or the draft, is measured.
    """
    count, start = len(rollout.rows), trainer.accelerator.process_index * len(rollout.rows)

    def log(name: str, values: np.ndarray) -> None:
        known = values[~np.isnan(values)] if values.dtype != bool else values
        trainer._log_metric(name, float(known.mean()) if len(known) else math.nan)

    def log_column(name: str, values: np.ndarray) -> None:
        trainer._log_completion_extra(name, values[start : start + count].tolist())

    log("render/malformed", batch.malformed)
    log("render/kept", batch.kept)
    log("render/failed", batch.failed)
    for tokenizer, cut in batch.tokens_cut.items():
        log(f"render/tokens_cut/{tokenizer}", cut)
        trainer._log_metric(f"render/share_cut/{tokenizer}", (cut > 0).sum() / max(1, (~np.isnan(cut)).sum()))
    trainer._log_completion_extra("user_prompt", [row["user_prompt"] for row in rollout.rows])
    trainer._log_completion_extra("rewrite", rollout.rewrites)
    scored, names = batch.scored, objective.names
    if not objective.is_plain:
        for column, name in enumerate(names):
            log(f"raw_rewards/{name}", batch.rewards[scored, column])
            log_column(f"raw_{name}", batch.rewards[:, column])
        log("render/held_back", batch.gated[scored])
    if trainer.args.turns > 1:  # a revision's reward is a gain: its mean with the first turn's says nothing
        turn, weights = "second" if batch.revised.any() else "first", np.array(list(objective.weights.values()))
        log(f"turns/{turn}/reward", np.where(weights, batch.values, 0.0) @ weights)
        log(f"turns/{turn}/kept", batch.kept)
    if gained:
        columns = [names.index(name) for name in gained]
        for name, column in zip(gained, columns, strict=True):
            log(f"gain/{name}", batch.gains[scored, column])
            log_column(f"gain_{name}", batch.gains[:, column])
        totals = batch.gains[scored][:, columns] @ np.array([objective.weights[name] for name in gained])
        totals = totals[~np.isnan(totals)]
        log("gain/win_rate", (totals > 0) + 0.5 * (totals == 0))
