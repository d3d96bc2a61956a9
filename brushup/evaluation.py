"""Before and after: the same held-out prompts, drawn from the same seeds, as the user wrote them and as rewritten."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from PIL import Image
from scipy.stats import bootstrap

from brushup.grid import labelled_grid
from brushup.worker import LocalWorker, RenderJob, mean_scores, paired_seeds


@dataclass
class Arm:
    """What one way of prompting got: for each prompt its rewards, or None where the machine failed a picture."""

    prompts: list[str]
    rewards: list[dict[str, float] | None]
    first_images: list[Image.Image | None]
    right: list[bool] = field(default_factory=list)  # the checker's word on each picture

    @classmethod
    def joined(cls, parts: "Sequence[Arm]") -> "Arm":
        """The arm over the prompts of all `parts`, in order."""
        return cls(*([item for part in parts for item in vars(part)[name.name]] for name in fields(cls)))

    def mean_rewards(self) -> dict[str, float]:
        scored = [row for row in self.rewards if row is not None]
        return {name: float(np.mean([row[name] for row in scored])) for name in scored[0]}

    def summary(self) -> dict:
        """As in results.json; `checker_accuracy` is None without a checker."""
        accuracy = float(np.mean(self.right)) if self.right else None
        scored = sum(row is not None for row in self.rewards)
        return {"rewards": self.mean_rewards(), "checker_accuracy": accuracy, "n": scored}


def evaluate_prompts(
    prompts: Sequence[str],
    rows: Sequence[dict],
    worker: LocalWorker,
    text_rewards: dict[str, Callable],
    images_per_prompt: int,
    seed: int,
    checker: Callable | None = None,
) -> Arm:
    """Draws `prompts`, one for each validation row, and scores them against the rows' own `user_prompt`s.

    Args:
        rows: have `user_prompt`, `prompt`, and `scene` if there is a checker.
        text_rewards: rewards with TRL's signature, by name.
        images_per_prompt: pictures a prompt; its image rewards are the mean over them.
        seed: each arm of a comparison gets the same, and so the same noise for the same row.
        checker: `(images, scene) -> right or wrong` of each picture.

    Raises:
        RuntimeError: not one prompt could be drawn and scored.
    """
    if not rows:  # a rank without a share, where there are more ranks than prompts
        return Arm([], [], [])
    jobs = [
        RenderJob(prompt, row["user_prompt"], drawn_from)
        for prompt, row in zip(prompts, rows, strict=True)
        for drawn_from in paired_seeds(seed, "validation", row["user_prompt"], images_per_prompt)
    ]
    results = worker.submit(jobs, return_images=True).result()
    by_row = [results[start : start + images_per_prompt] for start in range(0, len(results), images_per_prompt)]
    rewards = [mean_scores(some) if not any(r.error for r in some) else None for some in by_row]
    if all(row is None for row in rewards):
        raise RuntimeError(f"none of the {len(rows)} validation prompts could be drawn and scored: {results[0].error}")
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    completions = [[{"role": "assistant", "content": prompt}] for prompt in prompts]
    for name, reward in text_rewards.items():
        scores = reward(prompts=[row["prompt"] for row in rows], completions=completions, **columns)
        for row, score in zip(rewards, scores, strict=True):
            if row is not None:
                row[name] = score
    arm = Arm(list(prompts), rewards, [some[0].image for some in by_row])
    if checker:
        drawn = [(r.image, row["scene"]) for some, row in zip(by_row, rows, strict=True) for r in some if r.image]
        arm.right = checker([image for image, _ in drawn], [scene for _, scene in drawn])
    return arm


def paired_difference(after: Arm, before: Arm, name: str, seed: int = 0) -> dict[str, float | list[float]]:
    """Mean of after - before over the prompts, and its 95 % bootstrap interval (percentile, 10,000 resamples)."""
    differences = [
        b[name] - a[name]
        for a, b in zip(before.rewards, after.rewards, strict=True)
        if a is not None and b is not None
    ]
    interval = bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", rng=seed
    ).confidence_interval
    return {"mean": float(np.mean(differences)), "ci95": [float(interval.low), float(interval.high)]}


def win_rate(after: Arm, before: Arm, weights: dict[str, float]) -> float:
    """The share of prompts whose weighted reward is higher after than before; a tie counts half."""
    totals = [
        tuple(sum(weights[name] * row[name] for name in weights) for row in pair)
        for pair in zip(before.rewards, after.rewards, strict=True)
        if None not in pair
    ]
    return float(np.mean([0.5 if a == b else float(b > a) for a, b in totals]))


def results_table(arms: dict[str, Arm]) -> str:
    """The arms as a Markdown table: a line an arm, a column a reward, and the checker's accuracy if there is one."""
    summaries = {name: arm.summary() for name, arm in arms.items()}
    rewards = list(next(iter(summaries.values()))["rewards"])
    checked = any(summary["checker_accuracy"] is not None for summary in summaries.values())
    lines = [["prompts", *rewards, *(["right pictures"] if checked else []), "n"]]
    for name, summary in summaries.items():
        right = [f"{summary['checker_accuracy']:.1%}"] if checked else []
        lines.append([name, *(f"{summary['rewards'][r]:.3f}" for r in rewards), *right, str(summary["n"])])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )


def before_after_sheet(before: Arm, after: Arm, columns: int = 6) -> Image.Image:
    """The first prompts of which both pictures were drawn: above drawn from `before`, below from `after`."""
    shown = [i for i, pair in enumerate(zip(before.first_images, after.first_images, strict=True)) if None not in pair]
    titles = ("drawn from the user's prompt", "drawn from the rewrite")
    lines = [
        (title, [(arm.first_images[i], arm.prompts[i]) for i in shown[:columns]])
        for title, arm in zip(titles, (before, after), strict=True)
    ]
    return labelled_grid(lines)
