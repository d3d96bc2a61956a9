"""Validation: the held-out prompts, drawn as the policy rewrites them now, beside the users' own prompts."""

import functools
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from brushup.comparison import Measures
from brushup.config import EvaluationConfig, PromptEnhancerConfig
from brushup.enhancer import Enhancement, PromptEnhancer
from brushup.evaluation import PICTURES_KEPT, Arm, evaluate_prompts
from brushup.objective import Objective
from brushup.rewards import resolve
from brushup.worker import LocalWorker


logger = logging.getLogger(__name__)


class Validation:
    """Scores ways of writing the held-out prompts, all from the same seeds; the users' own are drawn once.

    The ranks share the work: all of them call each method together, and get the same arms and metrics.

    Args:
        rows: as `load_prompts` gives them.
        worker: as for `PromptEnhancerTrainer`.
        text_rewards: by name.
        objective: how the rewards become a total.
        args: `seed`, `validation_images_per_prompt`, `checker`, `success_threshold` and how answers are written count.
        pictures_kept: of so many rows (of each rank) an arm keeps the first picture.
    """

    def __init__(
        self,
        rows: list[dict],
        worker: LocalWorker,
        text_rewards: dict[str, Callable],
        objective: Objective,
        args: PromptEnhancerConfig | EvaluationConfig,
        pictures_kept: int = PICTURES_KEPT,
    ):
        self.rows = rows
        self.objective = objective
        self.measures = Measures(rows, objective.weights, args.success_threshold, worker.token_limits)
        self._evaluate = functools.partial(
            evaluate_prompts,
            worker=worker,
            text_rewards=text_rewards,
            images_per_prompt=args.validation_images_per_prompt,
            seed=args.seed,
            checker=resolve(args.checker) if args.checker else None,
            pictures_kept=pictures_kept,
        )
        self._writing = {"max_new_tokens": args.max_completion_length, "batch_size": args.per_device_eval_batch_size}
        state = PartialState()
        size = -(-len(rows) // state.num_processes)
        start = state.process_index * size
        self.share = rows[start : start + size]
        """The rows of this rank."""
        self._padded_share = self.share + rows[:1] * (size - len(self.share))
        """The same, as many on each rank: where the weights are sharded, ranks can only write answers in step."""

    @functools.cached_property
    def original(self) -> Arm:
        """The users' own prompts."""
        arm = self._draw([row["user_prompt"] for row in self.share])
        arm.totals = self.objective.totals(arm.rewards, arm.rewards)
        return arm

    def rewrite(self, enhancer: PromptEnhancer) -> list[Enhancement]:
        """The enhancer's likeliest rewrites of this rank's share."""
        return enhancer.enhance(
            [row["user_prompt"] for row in self._padded_share],
            temperature=0,
            image=[row.get("image") for row in self._padded_share],
            **self._writing,
        )[: len(self.share)]

    def draw(self, prompts: Sequence[str], **answers: Any) -> Arm:
        """The arm over all rows.

        Args:
            prompts: what to draw for each row of this rank's `share`.
            **answers: `answers` and `malformed` of `evaluate_prompts`, if a policy wrote the prompts.

        Raises:
            RuntimeError: on all ranks alike, if not one prompt could be drawn and scored.
        """
        arm = self._draw(prompts, **answers)
        arm.totals = self.objective.totals(arm.rewards, self.original.rewards)
        return arm

    def _draw(self, prompts: Sequence[str], **answers: Any) -> Arm:
        arm = Arm.joined(gather_object([self._evaluate(prompts, self.share, **answers)]))
        if arm.errors:
            kinds = "; ".join(f"{count} x {error}" for error, count in Counter(arm.errors).most_common(3))
            logger.warning(
                "%d of %d validation prompts are left out: %s", arm.rewards.count(None), len(arm.rewards), kinds
            )
        if not any(arm.rewards):
            raise RuntimeError(f"none of the {len(self.rows)} validation prompts could be scored: {arm.errors[:1]}")
        return arm

    def draw_rewrites(self, enhancements: Sequence[Enhancement]) -> Arm:
        """The arm over all rows; `enhancements` are of this rank's share."""
        return self.draw(
            [one.prompt for one in enhancements],
            malformed=[one.fell_back for one in enhancements],
            answers=[one.answer for one in enhancements],
        )

    def summary(self, arm: Arm) -> dict[str, Any]:
        """As in results.json: see `Measures.summary`."""
        return self.measures.summary(arm, self.original)

    def metrics(self, arm: Arm) -> dict[str, float]:
        """What trackers and `metric_for_best_model` see: the numbers of `Measures.summary`, `rewards/<name>/mean` and
        `reward_by_category/<category>`; with a checker `right_pictures`."""
        summary = self.summary(arm)
        names = ("reward", "above_original", "quality_score", "malformed", "failed", "success_rate")
        values = {name: summary[name] for name in names} | {"right_pictures": summary["checker_accuracy"]}
        values |= {f"rewards/{name}/mean": mean for name, mean in summary["rewards"].items()}
        for category, indices in self.measures.groups("category").items():
            totals = [total for total in arm.select(indices).totals if total is not None]
            values[f"reward_by_category/{category}"] = float(np.mean(totals)) if totals else None
        return {name: value for name, value in values.items() if value is not None}

    def save(self, path: Path, step: int, arm: Arm, metrics: dict[str, float]) -> None:
        """Writes the step's metrics and what became of each prompt as JSON."""
        kept = ("user_prompt", "category", "difficulty")
        rows = [
            {
                **{name: row[name] for name in kept if name in row},
                "rewrite": arm.prompts[i],
                "malformed": arm.malformed[i],
                "rewards": arm.rewards[i],
                "original_rewards": self.original.rewards[i],
                "right_pictures": arm.right[i],
                "tokens": arm.tokens[i],
            }
            for i, row in enumerate(self.rows)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"step": step, "metrics": metrics, "rows": rows}, indent=1, ensure_ascii=False))

    def load(self, path: Path) -> Arm | None:
        """An arm that `save` wrote, without its pictures; None if it is not there or of other prompts."""
        rows = json.loads(path.read_text())["rows"] if path.is_file() else []
        if [row["user_prompt"] for row in rows] != [row["user_prompt"] for row in self.rows]:
            return None
        names = ("rewrite", "rewards", "right_pictures", "tokens", "malformed")
        prompts, rewards, right, tokens, malformed = ([row[name] for row in rows] for name in names)
        totals = self.objective.totals(rewards, [row["original_rewards"] for row in rows])
        return Arm(prompts, rewards, [None] * len(rows), right, tokens, malformed, totals=totals)
