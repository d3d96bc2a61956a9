"""Arms compared, prompt by prompt: means, differences with their intervals, win rates, tables."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from brushup.data import DIFFICULTIES
from brushup.evaluation import Arm
from brushup.rewards.quality_score import quality_points


Scores = Sequence[float | None]


def paired_difference(after: Scores, before: Scores, seed: int = 0) -> dict[str, float | list[float]]:
    """Mean of after - before over the prompts that have both, and its 95 % bootstrap interval (percentile, 10,000
    resamples); both None if fewer than two prompts have both."""
    differences = [b - a for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    if len(differences) < 2:
        return {"mean": None, "ci95": None}
    interval = bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", rng=seed
    ).confidence_interval
    return {"mean": float(np.mean(differences)), "ci95": [float(interval.low), float(interval.high)]}


def win_rate(after: Scores, before: Scores) -> float | None:
    """The share of prompts whose score is higher after than before; a tie counts half."""
    pairs = zip(before, after, strict=True)
    return _mean([0.5 if a == b else float(b > a) for a, b in pairs if a is not None and b is not None])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


@dataclass(frozen=True)
class Measures:
    """How arms are judged.

    Args:
        rows: the prompts, with `user_prompt`.
        weights: of each reward in the total, by name; 0 for one that is only looked at.
        success_threshold: a prompt is a success if its total is higher.
        token_limits: how many tokens of a prompt each tokenizer of the generator reads.
    """

    rows: Sequence[dict]
    weights: dict[str, float]
    success_threshold: float | None
    token_limits: dict[str, int]

    def select(self, indices: Sequence[int]) -> "Measures":
        """The same for some of the prompts."""
        return replace(self, rows=[self.rows[index] for index in indices])

    def summary(self, arm: Arm, original: Arm) -> dict[str, Any]:
        """What an arm got, each over the prompts that could be scored.

        Returns:
            `rewards` (means, by name), `reward` (mean of the weighted sum), `above_original` (share of prompts with a
            higher reward than the user's own prompt at the same seeds; a tie counts half), `success_rate` (None
            without a threshold), `quality_score` (the five-point score of the prompts, 0..1), `checker_accuracy`
            (share of right pictures; None without a checker), `tokens` (for each tokenizer the mean length `mean` and
            the share of prompts `share_cut` that it does not read to the end), `malformed` and `failed` (shares of
            all prompts) and `n`, the prompts that count.
        """
        totals = [total for total in arm.totals if total is not None]
        quality = [
            sum(quality_points(row["user_prompt"], prompt).values()) / 5
            for row, prompt in zip(self.rows, arm.prompts, strict=True)
        ]
        tokens = {}
        for name, limit in self.token_limits.items():
            lengths = [counts[name] for counts in arm.tokens if counts]
            if lengths:
                cut = np.mean([length > limit for length in lengths])
                tokens[name] = {"mean": float(np.mean(lengths)), "share_cut": float(cut), "limit": limit}
        successes = [total > self.success_threshold for total in totals] if self.success_threshold is not None else []
        return {
            "rewards": arm.mean_rewards(),
            "reward": _mean(totals),
            "above_original": win_rate(arm.totals, original.totals),
            "success_rate": _mean(successes),
            "quality_score": _mean(quality),
            "checker_accuracy": arm.checker_accuracy(),
            "tokens": tokens,
            "malformed": _mean(arm.malformed),
            "failed": arm.rewards.count(None) / len(arm.rewards),
            "n": len(totals),
        }

    def groups(self, column: str) -> dict[str, list[int]]:
        """The indices of the prompts by their value of `column`, in the order of the values' names."""
        groups = defaultdict(list)
        for index, row in enumerate(self.rows):
            if row.get(column):
                groups[str(row[column])].append(index)
        levels = {name: place for place, name in enumerate(DIFFICULTIES)}
        return {name: groups[name] for name in sorted(groups, key=lambda name: (levels.get(name, 0), name))}

    def differences(self, after: Arm, before: Arm) -> dict[str, Any]:
        """What `after` has more than `before`, prompt by prompt.

        Returns:
            For each reward, and for `reward`, the total, if that is something else, a `paired_difference`; and the
            `win_rate` by the total.
        """
        gains = {name: paired_difference(after.scores(name), before.scores(name)) for name in self.weights}
        if len(self.weights) > 1 or after.totals != after.scores(next(iter(self.weights))):
            gains["reward"] = paired_difference(after.totals, before.totals)
        return gains | {"win_rate": win_rate(after.totals, before.totals)}


def compare(arms: dict[str, Arm], measures: Measures) -> dict[str, Any]:
    """All that is said about arms, the first of which is `original`; the last ones are policies: see docs/results.md.

    Returns:
        `arms`: `Measures.summary` of each, with `by_category` and `by_difficulty`; `differences`: of each arm and each
        before it ("trained - original") `Measures.differences`, with `by_category` and `by_difficulty` (each a
        `paired_difference` of the weighted sum); and of these again `trained_minus_untrained` and its `win_rate`.
    """
    groups = {f"by_{column}": measures.groups(column) for column in ("category", "difficulty")}

    def summary(arm: Arm, indices: Sequence[int]) -> dict[str, Any]:
        return measures.select(indices).summary(arm.select(indices), arms["original"].select(indices))

    def gain(after: Arm, before: Arm, indices: Sequence[int]) -> dict[str, float | list[float]]:
        return paired_difference(*(arm.select(indices).totals for arm in (after, before)))

    results: dict[str, Any] = {"arms": {}, "differences": {}}
    for name, arm in arms.items():
        results["arms"][name] = measures.summary(arm, arms["original"]) | {
            by: {value: summary(arm, indices) for value, indices in values.items()} for by, values in groups.items()
        }
        for earlier in list(results["arms"])[:-1]:
            results["differences"][f"{name} - {earlier}"] = measures.differences(arm, arms[earlier]) | {
                by: {value: gain(arm, arms[earlier], indices) for value, indices in values.items()}
                for by, values in groups.items()
            }
    if {"trained", "untrained"} <= set(arms):
        gains = measures.differences(arms["trained"], arms["untrained"])
        results["win_rate"] = gains.pop("win_rate")
        results["trained_minus_untrained"] = gains
    return results


def results_table(arms: dict[str, dict]) -> str:
    """The summaries of arms as a Markdown table: a line an arm, a column a reward, and the checker's accuracy if there
    is one."""
    rewards = list(next(iter(arms.values()))["rewards"])
    checked = any(summary["checker_accuracy"] is not None for summary in arms.values())
    lines = [["prompts", *rewards, *(["right pictures"] if checked else []), "n"]]
    for name, summary in arms.items():
        right = [_percent(summary["checker_accuracy"])] if checked else []
        lines.append([name, *(f"{summary['rewards'][r]:.3f}" for r in rewards), *right, str(summary["n"])])
    return markdown_table(lines)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def markdown_table(lines: list[list[str]]) -> str:
    """The first line is the head."""
    lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |" for line in lines
    )
