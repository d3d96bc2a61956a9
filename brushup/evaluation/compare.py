"""Comparison of arms, prompt by prompt: means, differences with their intervals, win rates, tables."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from brushup.common import markdown_table, mean, percent
from brushup.evaluation.arm import Arm
from brushup.prompts.dataset import DIFFICULTIES
from brushup.rewards.registry import resolve


Scores = Sequence[float | None]


def paired_difference(after: Scores, before: Scores, seed: int = 0) -> dict[str, Any]:
    """Return the mean of after - before over the prompts that have both scores, and its 95 % interval.

    The interval is a percentile bootstrap of 10,000 resamples (Efron and Tibshirani 1993).

    Returns:
        `mean` and `ci95`, [low, high]; both None if fewer than two prompts have both scores.
    """
    differences = [b - a for a, b in zip(before, after, strict=True) if a is not None and b is not None]
    if len(differences) < 2:
        return {"mean": None, "ci95": None}
    interval = bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", rng=seed
    ).confidence_interval
    return {"mean": float(np.mean(differences)), "ci95": [float(interval.low), float(interval.high)]}


def win_rate(after: Scores, before: Scores) -> float | None:
    """Return the share of prompts, 0..1, whose score is higher after than before; a tie counts half."""
    pairs = zip(before, after, strict=True)
    return mean([0.5 if a == b else float(b > a) for a, b in pairs if a is not None and b is not None])


def harmed_share(after: Scores, before: Scores) -> float | None:
    """Return the share of prompts, 0..1, whose score is lower after than before; a tie harms nobody."""
    pairs = zip(before, after, strict=True)
    return mean([float(b < a) for a, b in pairs if a is not None and b is not None])


@dataclass(frozen=True)
class Measures:
    """The measures that arms are judged by.

    Args:
        rows: the held-out prompts; `category` and `difficulty` group them, if they are there.
        weights: of each reward in the total, by name; 0 for a monitor.
        success_threshold: a prompt is a success if its total is higher.
        token_limits: how many tokens of a prompt each tokenizer of the generator reads.
    """

    rows: Sequence[dict]
    weights: dict[str, float]
    success_threshold: float | None
    token_limits: dict[str, int]

    def summary(self, arm: Arm, original: Arm) -> dict[str, Any]:
        """Return the figures of an arm, each over the prompts that could be scored.

        Args:
            arm: over all rows, or over the same rows as `original`.
            original: the arm of the user prompts.

        Returns:
            `rewards` (means, by name), `by_skill` (means of their parts, such as `questions/color`), `reward` (mean of
            the total), `above_original` (share of prompts with a higher total than the user prompt at the same seeds;
            a tie counts half), `harmed` (share with a lower one), `harmed_by_checker` (share of which the checker
            accepts fewer images; None without one), `success_rate` (None without a threshold), `quality_score` (the
            reward of that name, 0..1), `checker_accuracy` (share of images that the checker accepts; None without
            one), `tokens` (for each tokenizer the mean length `mean`, the share of prompts `share_cut` that it does
            not read to the end, and its `limit`), `malformed`, `kept` (left as the user wrote them) and `failed`
            (shares of all prompts), `prompt_share` (the mean share of an answer that is the prompt) and `n`,
            the prompts that count.
        """
        totals = [total for total in arm.totals if total is not None]
        completions = [[{"role": "assistant", "content": prompt}] for prompt in arm.prompts]
        tokens = {}
        for name, limit in self.token_limits.items():
            lengths = [counts[name] for counts in arm.tokens if counts]
            if lengths:
                cut = np.mean([length > limit for length in lengths])
                tokens[name] = {"mean": float(np.mean(lengths)), "share_cut": float(cut), "limit": limit}
        successes = [total > self.success_threshold for total in totals] if self.success_threshold is not None else []
        return {
            "rewards": arm.mean_rewards(),
            "by_skill": arm.mean_by_skill(),
            "reward": mean(totals),
            "above_original": win_rate(arm.totals, original.totals),
            "harmed": harmed_share(arm.totals, original.totals),
            "harmed_by_checker": harmed_share(arm.checker_accuracy, original.checker_accuracy),
            "success_rate": mean(successes),
            "quality_score": mean(resolve("quality_score")(completions, arm.user_prompts)),
            "checker_accuracy": arm.mean_checker_accuracy(),
            "tokens": tokens,
            "malformed": mean(arm.malformed),
            "kept": mean(arm.kept),
            "prompt_share": mean(arm.prompt_share),
            "failed": arm.rewards.count(None) / len(arm.rewards),
            "n": len(totals),
        }

    def groups(self, column: str) -> dict[str, list[int]]:
        """Return the indices of the prompts by their value of the column, difficulties from easy to hard."""
        groups = defaultdict(list)
        for index, row in enumerate(self.rows):
            if row.get(column):
                groups[str(row[column])].append(index)
        levels = {name: place for place, name in enumerate(DIFFICULTIES)}
        return {name: groups[name] for name in sorted(groups, key=lambda name: (levels.get(name, 0), name))}

    def differences(self, after: Arm, before: Arm) -> dict[str, Any]:
        """Return the paired differences after - before, per reward, with 95 % intervals.

        Returns:
            A `paired_difference` for each reward, for `reward`, the total, unless the total is the only reward, and
            for `checker_accuracy`, if there is a checker; and the `win_rate` by the total.
        """
        gains = {name: paired_difference(after.scores(name), before.scores(name)) for name in self.weights}
        if len(self.weights) > 1 or after.totals != after.scores(next(iter(self.weights))):
            gains["reward"] = paired_difference(after.totals, before.totals)
        if mean(after.checker_accuracy) is not None:
            gains["checker_accuracy"] = paired_difference(after.checker_accuracy, before.checker_accuracy)
        return gains | {"win_rate": win_rate(after.totals, before.totals)}


def pairs(names: Sequence[str], trained: Sequence[str]) -> list[tuple[str, str]]:
    """Return the arms to compare, (after, before), by name: each trained policy with each other arm, once, and each
    arm with `original`."""
    return [
        (after, before)
        for after in names
        for before in names
        if (before == "original" != after)
        or (after in trained and before != after and before not in trained[trained.index(after) :])
    ]


def compare(arms: dict[str, Arm], measures: Measures, trained: Sequence[str] = ("trained",)) -> dict[str, Any]:
    """Return the comparison of the arms, the first of which is `original`.

    Args:
        arms: by name.
        measures: that they are judged by.
        trained: the names of the trained policies among them.

    Returns:
        `arms`: `Measures.summary` of each, with `by_category` and `by_difficulty`; `differences`:
        `Measures.differences` of the `pairs` ("trained - original"), with `by_category` and `by_difficulty` (each a
        `paired_difference` of the total) and `by_skill` (of each part of a reward);
        and, if both arms are there, `trained_minus_untrained` and its `win_rate`.
    """
    groups = {f"by_{column}": measures.groups(column) for column in ("category", "difficulty")}
    results: dict[str, Any] = {"arms": {}, "differences": {}}
    for name, arm in arms.items():
        results["arms"][name] = measures.summary(arm, arms["original"]) | {
            by: {
                value: measures.summary(arm.select(indices), arms["original"].select(indices))
                for value, indices in values.items()
            }
            for by, values in groups.items()
        }
    for name, other in pairs(list(arms), trained):
        after, before = arms[name], arms[other]
        results["differences"][f"{name} - {other}"] = measures.differences(after, before) | {
            by: {
                value: paired_difference(after.select(indices).totals, before.select(indices).totals)
                for value, indices in values.items()
            }
            for by, values in groups.items()
        }
        results["differences"][f"{name} - {other}"]["by_skill"] = {
            skill: paired_difference(after.scores(skill), before.scores(skill)) for skill in after.mean_by_skill()
        }
    if {"trained", "untrained"} <= set(arms):
        gains = measures.differences(arms["trained"], arms["untrained"])
        results["win_rate"] = gains.pop("win_rate")
        results["trained_minus_untrained"] = gains
    return results


def shown_name(name: str, summary: dict) -> str:
    """Return the arm's name, marked if its images were chosen by the training reward, which flatters them."""
    return f"{name} †" if summary.get("chosen_by_reward") else name


def results_table(arms: dict[str, dict]) -> str:
    """Return a Markdown table: a row for each arm, a column for each reward, for the checker, if there is one, and for
    the shares of prompts that the arm harms; results of earlier versions do not know these."""
    rewards = list(next(iter(arms.values()))["rewards"])
    shares = ("checker_accuracy", "harmed", "harmed_by_checker")
    shown = [name for name in shares if any(summary.get(name) is not None for summary in arms.values())]
    lines = [["prompts", *rewards, *shown, "n"]]
    for name, summary in arms.items():
        figures = [f"{summary['rewards'][reward]:.3f}" for reward in rewards]
        lines.append(
            [shown_name(name, summary), *figures, *(percent(summary.get(share)) for share in shown), str(summary["n"])]
        )
    return markdown_table(lines)
