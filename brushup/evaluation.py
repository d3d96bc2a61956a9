"""Before and after: the same held-out prompts, drawn from the same seeds, as the user wrote them and as rewritten."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from PIL import Image
from scipy.stats import bootstrap

from brushup.grid import labelled_grid
from brushup.worker import LocalWorker, RenderJob, RenderResult, mean_scores, paired_seeds


EXAMPLES = 6  # prompts of which the pictures are kept, for a sheet to look at


@dataclass
class Arm:
    """What one way of prompting got, an item for each prompt; None where the machine failed a picture.

    `rewards` are by name, over the pictures of a prompt; `right` is the share of its pictures, 0..1, that the checker
    calls right; `first_images` are kept of the first few prompts only. `errors` say what failed.
    """

    prompts: list[str]
    rewards: list[dict[str, float] | None]
    first_images: list[Image.Image | None]
    right: list[float | None]
    errors: list[str] = field(default_factory=list)

    @classmethod
    def joined(cls, parts: "Sequence[Arm]") -> "Arm":
        """The arm over the prompts of all `parts`, in order."""
        return cls(*([item for part in parts for item in vars(part)[name.name]] for name in fields(cls)))

    def totals(self, weights: dict[str, float]) -> list[float | None]:
        """The weighted sum of the rewards of each prompt."""
        return [None if row is None else sum(weights[name] * row[name] for name in weights) for row in self.rewards]

    def mean_rewards(self) -> dict[str, float]:
        scored = [row for row in self.rewards if row is not None]
        return {name: float(np.mean([row[name] for row in scored])) for name in scored[0]}

    def checker_accuracy(self) -> float | None:
        """The share of right pictures; None without a checker."""
        checked = [share for share in self.right if share is not None]
        return float(np.mean(checked)) if checked else None

    def summary(self) -> dict:
        """As in results.json."""
        scored = sum(row is not None for row in self.rewards)
        return {"rewards": self.mean_rewards(), "checker_accuracy": self.checker_accuracy(), "n": scored}


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

    It raises nothing that only one of several ranks could meet: whatever fails is in the arm's `errors`.

    Args:
        rows: have `user_prompt`, `prompt`, and `scene` if there is a checker.
        text_rewards: rewards with TRL's signature, by name.
        images_per_prompt: pictures a prompt; its image rewards are the mean over them.
        seed: each arm of a comparison gets the same, and so the same noise for the same row.
        checker: `(images, scene) -> right or wrong` of each picture.
    """
    jobs = [
        RenderJob(prompt, row["user_prompt"], drawn_from)
        for prompt, row in zip(prompts, rows, strict=True)
        for drawn_from in paired_seeds(seed, "validation", row["user_prompt"], images_per_prompt)
    ]
    try:
        results = worker.submit(jobs, return_images=True).result() if jobs else []
        by_row = [results[start : start + images_per_prompt] for start in range(0, len(results), images_per_prompt)]
        scores = _text_scores(text_rewards, prompts, rows, [some[0].tokens for some in by_row])
        right = [_share_right(some, row, checker) for some, row in zip(by_row, rows, strict=True)]
    except Exception as error:
        by_row = [[RenderResult(error=f"{type(error).__name__}: {error}")]] * len(rows)
        scores, right = [{}] * len(rows), [None] * len(rows)
    return Arm(
        prompts=list(prompts),
        rewards=[
            None if any(r.error for r in some) or None in texts.values() else mean_scores(some) | texts
            for some, texts in zip(by_row, scores, strict=True)
        ],
        first_images=[some[0].image if index < EXAMPLES else None for index, some in enumerate(by_row)],
        right=right,
        errors=[result.error for some in by_row for result in some if result.error],
    )


def _text_scores(
    rewards: dict[str, Callable], prompts: Sequence[str], rows: Sequence[dict], tokens: list[dict[str, int]]
) -> list[dict[str, float | None]]:
    """The text rewards of each row, by name."""
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    columns |= {
        "prompts": columns.pop("prompt", []),
        "completions": [[{"role": "assistant", "content": prompt}] for prompt in prompts],
        "rewrite_tokens": tokens,
    }
    scores = {name: reward(**columns) for name, reward in rewards.items()} if rows else {}
    return [{name: some[index] for name, some in scores.items()} for index in range(len(rows))]


def _share_right(results: list[RenderResult], row: dict, checker: Callable | None) -> float | None:
    images = [result.image for result in results if result.image]
    return float(np.mean(checker(images, [row["scene"]] * len(images)))) if checker and images else None


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
    pairs = zip(before.totals(weights), after.totals(weights), strict=True)
    return float(np.mean([0.5 if a == b else float(b > a) for a, b in pairs if a is not None and b is not None]))


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


def before_after_sheet(before: Arm, after: Arm) -> Image.Image:
    """The first prompts of which both pictures were drawn: above drawn from `before`, below from `after`."""
    shown = [i for i, pair in enumerate(zip(before.first_images, after.first_images, strict=True)) if None not in pair]
    titles = ("drawn from the user's prompt", "drawn from the rewrite")
    lines = [
        (title, [(arm.first_images[i], arm.prompts[i]) for i in shown[:EXAMPLES]])
        for title, arm in zip(titles, (before, after), strict=True)
    ]
    return labelled_grid(lines)
