"""Validation: the held-out prompts, rendered as the policy rewrites them now, beside the user prompts."""

import functools
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image

from brushup.config import PromptEnhancerConfig
from brushup.console import progress
from brushup.evaluation.arm import IMAGES_KEPT, Arm, evaluate_prompts, evaluation_jobs
from brushup.evaluation.compare import Measures
from brushup.policy.enhancement import Candidate, Enhancement
from brushup.policy.enhancer import PromptEnhancer
from brushup.recipe_config import EvaluationConfig
from brushup.render.job import RenderResult, Worker
from brushup.rewards.combine import Objective
from brushup.rewards.registry import TextReward, resolve


logger = logging.getLogger(__name__)


class Validation:
    """Scores ways of writing the held-out prompts, all from the same seeds; the user prompts are rendered once.

    The ranks share the work: all of them call each method together, and get the same arms and metrics.

    Args:
        rows: as `load_prompts` returns them.
        worker: as for `PromptEnhancerTrainer`.
        text_rewards: by name.
        objective: makes one total of the rewards.
        args: `seed`, how rewrites are written, and how they are scored.
        images_kept: the number of rows (of each rank) of which an arm keeps the first image.

    Attributes:
        share: the rows of this rank.
        indices: of these rows among all.
        measures: the measures that arms are judged by.
        max_new_tokens: that a completion may have.
        batch_size: completions written at once.
    """

    def __init__(
        self,
        rows: list[dict],
        worker: Worker,
        text_rewards: dict[str, TextReward],
        objective: Objective,
        args: PromptEnhancerConfig | EvaluationConfig,
        images_kept: int = IMAGES_KEPT,
    ):
        self.rows = rows
        self.worker, self.seed = worker, args.seed
        self.objective = objective
        self.measures = Measures(rows, objective.weights, args.success_threshold, worker.token_limits)
        self._evaluate = functools.partial(
            evaluate_prompts,
            worker=worker,
            text_rewards=text_rewards,
            images_per_prompt=args.validation_images_per_prompt,
            seed=args.seed,
            checker=resolve(args.checker) if args.checker else None,
            images_kept=images_kept,
        )
        self.max_new_tokens = args.max_completion_length
        self.batch_size = args.per_device_eval_batch_size
        state = PartialState()
        size = -(-len(rows) // state.num_processes)
        start = state.process_index * size
        self.share = rows[start : start + size]
        self.indices = range(start, start + len(self.share))
        # Padded to equal length: with sharded weights all ranks must call generate equally often.
        self._padded_share = self.share + rows[:1] * (size - len(self.share))

    @functools.cached_property
    def original(self) -> Arm:
        """The arm of the user prompts."""
        arm = self._render([row["user_prompt"] for row in self.share])
        arm.totals = self.objective.totals_by_prompt(arm.rewards, arm.rewards)
        return arm

    def rewrite(self, enhancer: PromptEnhancer, n: int = 1, temperature: float = 0.0) -> list[Enhancement]:
        """Return the enhancer's rewrites of this rank's share, `n` of each row in turn; by default the likeliest."""
        rows, before = [row for row in self._padded_share for _ in range(n)], enhancer.answered
        with progress("rewriting", len(rows), lambda: enhancer.answered - before):
            enhancements = enhancer.enhance(
                [row["user_prompt"] for row in rows],
                max_new_tokens=self.max_new_tokens,
                temperature=temperature,
                image=[row.get("image") for row in rows],
                batch_size=self.batch_size,
            )
        return enhancements[: n * len(self.share)]

    def revise(self, enhancer: PromptEnhancer, drafts: Arm) -> list[Enhancement]:
        """Return the revisions of an arm's prompts, of this rank's share; the policy looks at their first images.

        A draft without an image stays as it is; a gray one is shown, since all ranks must call generate equally often.
        """
        rows = self._padded_share
        share = drafts.select([*self.indices, *[0] * (len(rows) - len(self.share))])
        jobs, before = evaluation_jobs(share.prompts, rows, self.worker.columns, 1, self.seed), enhancer.answered
        try:
            rendered = self.worker.submit(jobs, return_images=True).result() if jobs else []
        except Exception as error:  # which other ranks may not have met
            rendered = [RenderResult.failed(error)] * len(jobs)
        images = [result.image or Image.new("RGB", (64, 64), "gray") for result in rendered]
        drafted = [
            Enhancement(row["user_prompt"], prompt, False, "", draft=Candidate(prompt, image, {}))
            for row, prompt, image in zip(rows, share.prompts, images, strict=True)
        ]
        beside = [row.get("image") for row in rows]
        with progress("revising", len(drafted), lambda: enhancer.answered - before):
            revised = enhancer.revise(drafted, beside, self.max_new_tokens, batch_size=self.batch_size)
        found = zip(drafted, revised, rendered, strict=True)
        return [after if result.image else before for before, after, result in found][: len(self.share)]

    def render(self, prompts: Sequence[str], **answers: Any) -> Arm:
        """Return the arm over all rows.

        Args:
            prompts: to render for each row of this rank's `share`.
            **answers: `answers` and `malformed` of `evaluate_prompts`, if a policy wrote the prompts.

        Raises:
            RuntimeError: on all ranks alike, if not one prompt could be rendered and scored.
        """
        arm = self._render(prompts, **answers)
        arm.totals = self.objective.totals_by_prompt(arm.rewards, self.original.rewards)
        return arm

    def _render(self, prompts: Sequence[str], **answers: Any) -> Arm:
        return self._gathered(self._evaluate(prompts, self.share, **answers))

    def _gathered(self, share: Arm) -> Arm:
        """Return the arm over all rows from the ranks' shares; raise as `render`."""
        arm = Arm.joined(gather_object([share]))
        if arm.errors:
            kinds = "; ".join(f"{count} x {error}" for error, count in Counter(arm.errors).most_common(3))
            logger.warning(
                "%d of %d validation prompts are left out: %s", arm.rewards.count(None), len(arm.rewards), kinds
            )
        if not any(arm.rewards):
            reason = arm.errors[0] if arm.errors else "each of them had a reward that gave None"
            raise RuntimeError(f"none of the {len(self.rows)} validation prompts could be scored: {reason}")
        return arm

    def render_rewrites(self, enhancements: Sequence[Enhancement]) -> Arm:
        """Return the arm over all rows; the enhancements are of this rank's share."""
        return self.render(**_as_prompts(enhancements))

    def render_again(self, arm: Arm) -> Arm:
        """Return an arm over all rows of the same prompts as another validation's arm."""
        share = arm.select(self.indices)
        return self.render(share.prompts, malformed=share.malformed, answers=share.answers)

    def best_of(self, likeliest: Arm, samples: Sequence[Enhancement]) -> Arm:
        """Return the arm of the rewrites with the highest totals, of each prompt's likeliest and its sampled ones.

        A rewrite that comes twice is rendered once. Not more than one sample of each prompt is in memory.

        Args:
            likeliest: the arm of the policy, over all rows.
            samples: of this rank's share, as `rewrite` returns them.
        """
        best, originals = likeliest.select(self.indices), self.original.select(self.indices)
        n = len(samples) // max(1, len(self.share))
        candidates = [
            list(
                {sample.prompt: sample for sample in samples[row * n : row * n + n] if sample.prompt != known}.values()
            )
            for row, known in enumerate(best.prompts)
        ]
        errors = []
        for turn in range(max(map(len, candidates), default=0)):
            rows = [row for row, samples_of_row in enumerate(candidates) if turn < len(samples_of_row)]
            rewrites = _as_prompts([candidates[row][turn] for row in rows])
            drawn = self._evaluate(rows=[self.share[row] for row in rows], **rewrites)
            drawn.totals = self.objective.totals_by_prompt(drawn.rewards, originals.select(rows).rewards)
            errors += drawn.errors
            best = best.with_better(drawn, rows)
        best.errors = errors
        return self._gathered(best)

    def summary(self, arm: Arm) -> dict[str, Any]:
        """Return the figures of an arm, as results.json has them: see `Measures.summary`."""
        return self.measures.summary(arm, self.original)

    def metrics(self, arm: Arm) -> dict[str, float]:
        """Return the metrics for trackers and `metric_for_best_model`: the numbers of `Measures.summary`,
        `rewards/<name>/mean` and `reward_by_category/<category>`."""
        summary = self.summary(arm)
        names = (
            "reward",
            "above_original",
            "harmed",
            "harmed_by_checker",
            "quality_score",
            "malformed",
            "kept",
            "prompt_share",
            "failed",
            "success_rate",
            "checker_accuracy",
        )
        values = {name: summary[name] for name in names}
        values |= {f"rewards/{name}/mean": mean for name, mean in summary["rewards"].items()}
        for category, indices in self.measures.groups("category").items():
            totals = [total for total in arm.select(indices).totals if total is not None]
            values[f"reward_by_category/{category}"] = float(np.mean(totals)) if totals else None
        return {name: value for name, value in values.items() if value is not None}

    def save(self, path: Path, step: int, arm: Arm, metrics: dict[str, float]) -> None:
        """Write the step's metrics and the outcome of each prompt as JSON."""
        kept = ("user_prompt", "category", "difficulty")
        rows = [
            {
                **{name: row[name] for name in kept if name in row},
                "rewrite": arm.prompts[i],
                "malformed": arm.malformed[i],
                "prompt_share": arm.prompt_share[i],
                "rewards": arm.rewards[i],
                "original_rewards": self.original.rewards[i],
                "checker_accuracy": arm.checker_accuracy[i],
                "tokens": arm.tokens[i],
            }
            for i, row in enumerate(self.rows)
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"step": step, "metrics": metrics, "rows": rows}, indent=1, ensure_ascii=False))

    def load(self, path: Path) -> Arm | None:
        """Return an arm that `save` wrote, without its images; None if it is not there, or of other prompts."""
        rows = json.loads(path.read_text())["rows"] if path.is_file() else []
        if [row["user_prompt"] for row in rows] != [row["user_prompt"] for row in self.rows]:
            return None
        for row in rows:  # files from before 2026-12 call it right_pictures
            row.setdefault("checker_accuracy", row.get("right_pictures"))
            row.setdefault("prompt_share", 1.0)
        names = ("user_prompt", "rewrite", "rewards", "checker_accuracy", "tokens", "malformed", "prompt_share")
        user_prompts, prompts, rewards, accuracy, *rest = ([row[name] for row in rows] for name in names)
        totals = self.objective.totals_by_prompt(rewards, [row["original_rewards"] for row in rows])
        return Arm(user_prompts, prompts, rewards, [None] * len(rows), accuracy, *rest, totals=totals)


def _as_prompts(enhancements: Sequence[Enhancement]) -> dict[str, list]:
    """Return the enhancements as arguments of `evaluate_prompts`."""
    return {
        "prompts": [enhancement.prompt for enhancement in enhancements],
        "malformed": [enhancement.malformed for enhancement in enhancements],
        "answers": [enhancement.answer for enhancement in enhancements],
    }
