"""Validation: the held-out prompts, drawn as the policy rewrites them now, beside the users' own prompts."""

import functools
import json
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object

from brushup.config import PromptEnhancerConfig
from brushup.evaluation import Arm, evaluate_prompts, win_rate
from brushup.rewards import resolve
from brushup.rewards.quality_score import quality_points
from brushup.worker import LocalWorker


logger = logging.getLogger(__name__)


class Validation:
    """Scores ways of writing the held-out prompts, all from the same seeds; the users' own are drawn once.

    The ranks share the work: all of them call each method together, and get the same arms and metrics.

    Args:
        rows: as `load_prompts` gives them.
        worker: as for `PromptEnhancerTrainer`.
        text_rewards: by name.
        weights: of each reward, by name.
        args: `seed`, `validation_images_per_prompt`, `checker` and `success_threshold` count.
    """

    def __init__(
        self,
        rows: list[dict],
        worker: LocalWorker,
        text_rewards: dict[str, Callable],
        weights: dict[str, float],
        args: PromptEnhancerConfig,
    ):
        self.rows = rows
        self.weights = weights
        self.success_threshold = args.success_threshold
        self._evaluate = functools.partial(
            evaluate_prompts,
            worker=worker,
            text_rewards=text_rewards,
            images_per_prompt=args.validation_images_per_prompt,
            seed=args.seed,
            checker=resolve(args.checker) if args.checker else None,
        )
        state = PartialState()
        size = -(-len(rows) // state.num_processes)
        start = state.process_index * size
        self.share = rows[start : start + size]
        """The rows of this rank."""
        self.padded_share = self.share + rows[:1] * (size - len(self.share))
        """The same, as many on each rank: where the weights are sharded, ranks can only write answers in step."""

    @functools.cached_property
    def original(self) -> Arm:
        """The users' own prompts."""
        return self.draw([row["user_prompt"] for row in self.share])

    def draw(self, prompts: Sequence[str]) -> Arm:
        """The arm over all rows.

        Args:
            prompts: what to draw for each row of this rank's `share`.

        Raises:
            RuntimeError: on all ranks alike, if not one prompt could be drawn and scored.
        """
        arm = Arm.joined(gather_object([self._evaluate(prompts, self.share)]))
        if arm.errors:
            kinds = "; ".join(f"{count} x {error}" for error, count in Counter(arm.errors).most_common(3))
            logger.warning(
                "%d of %d validation prompts are left out: %s", arm.rewards.count(None), len(arm.rewards), kinds
            )
        if not any(arm.rewards):
            raise RuntimeError(f"none of the {len(self.rows)} validation prompts could be scored: {arm.errors[:1]}")
        return arm

    def metrics(self, arm: Arm, malformed: Sequence[bool]) -> dict[str, float]:
        """What trackers and `metric_for_best_model` see, each over the prompts that could be scored.

        Returns:
            `reward` (the weighted sum), `reward_by_category/<category>`, `rewards/<name>/mean`; `above_original`: the
            share of prompts with a higher reward than the user's own prompt at the same seeds (a tie counts half);
            `success_rate`: the share with a reward over `success_threshold`; `quality_score`: the five-point score of
            the rewrites, 0..1; `malformed` and `failed`: shares of all prompts; `right_pictures` with a checker.
        """
        totals = [total for total in arm.totals(self.weights) if total is not None]
        by_category = defaultdict(list)
        for row, total in zip(self.rows, arm.totals(self.weights), strict=True):
            if row.get("category") and total is not None:
                by_category[row["category"]].append(total)
        quality = [
            sum(quality_points(row["user_prompt"], prompt).values()) / 5
            for row, prompt in zip(self.rows, arm.prompts, strict=True)
        ]
        values = {
            "reward": np.mean(totals),
            "above_original": win_rate(arm, self.original, self.weights),
            "quality_score": np.mean(quality),
            "malformed": np.mean(malformed),
            "failed": arm.rewards.count(None) / len(self.rows),
        }
        if self.success_threshold is not None:
            values["success_rate"] = np.mean([total > self.success_threshold for total in totals])
        if arm.checker_accuracy() is not None:
            values["right_pictures"] = arm.checker_accuracy()
        values |= {f"rewards/{name}/mean": mean for name, mean in arm.mean_rewards().items()}
        values |= {f"reward_by_category/{name}": np.mean(some) for name, some in sorted(by_category.items())}
        return {name: float(value) for name, value in values.items()}

    def save(self, path: Path, step: int, arm: Arm, malformed: Sequence[bool], metrics: dict[str, float]) -> None:
        """Writes the step's metrics and what became of each prompt as JSON."""
        kept = ("user_prompt", "category", "difficulty")
        rows = [
            {
                **{name: row[name] for name in kept if name in row},
                "rewrite": arm.prompts[i],
                "malformed": malformed[i],
                "rewards": arm.rewards[i],
                "original_rewards": self.original.rewards[i],
                "right_pictures": arm.right[i],
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
        columns = [[row[name] for row in rows] for name in ("rewrite", "rewards", "right_pictures")]
        return Arm(columns[0], columns[1], [None] * len(rows), columns[2])
