"""Verdicts: what the differences between arms show, in words, and no more than their intervals do."""

import re
from typing import Any

from brushup.common import percent
from brushup.evaluation.compare import shown_name
from brushup.evaluation.results import Results


MARK = (
    "† chosen by the training reward, which flatters it: judge it by the checker and by rewards that were not trained "
    "on."
)
TOO_FEW = "fewer than two prompts to compare"
COMPARED = {"better": "is better than", "worse": "is worse than", "no difference shown": "shows no difference to"}


def total_gain(gain: dict[str, Any]) -> dict[str, Any]:
    """Return the paired difference in the total; with a single reward it is that of the reward."""
    return gain["reward"] if "reward" in gain else next(iter(gain.values()))


def judge(difference: dict[str, Any]) -> str:
    """Return in words what a paired difference shows."""
    if difference["ci95"] is None:
        return TOO_FEW
    low, high = difference["ci95"]
    return "better" if low > 0 else "worse" if high < 0 else "no difference shown"


def verdict(gain: dict[str, Any]) -> tuple[str, str]:
    """Return what a difference between two arms shows, in words, and the figures behind it."""
    total = total_gain(gain)
    judgement = judge(total)
    if judgement == TOO_FEW:
        return judgement, ""
    return judgement, f"{_reward(total)}, wins on {percent(gain['win_rate'])} of the prompts"


def _reward(difference: dict[str, Any]) -> str:
    low, high = difference["ci95"]
    return f"reward {difference['mean']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})"


def headline(results: Results, name: str) -> str:
    """Return whether the trained policy is better than the user's prompt, by how much, how many prompts it harms, and
    how it stands against the best of several untrained rewrites; empty if it was not compared with the user's prompt.

    Args:
        results: of a training run or of an evaluation.
        name: of the policy's arm.
    """
    gain = total_gain(results.differences.get(f"{name} - original", {"clip": {"ci95": None}}))
    if gain["ci95"] is None:
        return ""
    arm = results.arms[name]
    sentences = [f"{name} {COMPARED[judge(gain)]} the user's prompt: {_reward(gain)}."]
    judges = {"the reward": arm.get("harmed"), "the checker": arm.get("harmed_by_checker")}
    harmed = [f"{percent(share)} by {judge_}" for judge_, share in judges.items() if share is not None]
    if harmed:
        sentences.append(f"Of {arm['n']} prompts it harms {' and '.join(harmed)}.")
    best = next((other for other in results.arms if re.fullmatch(r"best_of_\d+ untrained", other)), None)
    against = results.differences.get(f"{name} - {best}", {})
    if against and total_gain(against)["ci95"]:
        total, checked = total_gain(against), against.get("checker_accuracy")
        count = best.split()[0].removeprefix("best_of_")
        words = (
            f"Against the best of {count} untrained rewrites, which the reward chose: {judge(total)}, {_reward(total)}"
        )
        if checked and checked["ci95"]:
            mean, low, high = (f"{100 * value:+.1f}" for value in (checked["mean"], *checked["ci95"]))
            words += f"; by the checker, which did not choose: {judge(checked)}, {mean} points ({low} to {high})"
        sentences.append(words + ".")
    return " ".join(sentences)


def shown_differences(results: Results) -> dict[str, dict[str, Any]]:
    """Return the differences between each trained policy and each other arm, by "A - B", and those between its second
    turn and its other arms; those to an oracle are left out, since it is at least as good by construction."""
    shown = {}
    for name, gain in results.differences.items():
        after, before = name.split(" - ", 1)
        policy = after.removeprefix("revised ")
        of_same = before.split()[-1] == policy and not before.startswith("best_turn ")
        if policy in results.trained_policies and "oracle " not in before and (after == policy or of_same):
            shown[name] = gain
    return shown


def marked_differences(results: Results) -> dict[str, dict[str, Any]]:
    """Return the `shown_differences`, with a mark at those to an arm that the training reward chose."""
    return {
        f"{after} - {shown_name(before, results.arms.get(before, {}))}": gain
        for name, gain in shown_differences(results).items()
        for after, before in [name.split(" - ", 1)]
    }


def has_mark(results: Results) -> bool:
    """Return whether the training reward chose the images of an arm."""
    return any(arm.get("chosen_by_reward") for arm in results.arms.values())
