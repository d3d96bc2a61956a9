"""The report of an evaluation: report.html, one file with all its images, and a summary for the terminal."""

import base64
import io
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from brushup.common import percent
from brushup.evaluation.arm import Arm
from brushup.evaluation.compare import results_table
from brushup.evaluation.results import Results
from brushup.evaluation.reward_hacking import distinct_signs


EXAMPLES_OF_A_KIND = 2  # of each category; without categories three times as many
PIXEL_ART = 64  # pixels: smaller images are shown with hard edges


def write_report(folder: Path, results: Results, arms: dict[str, Arm], rows: Sequence[dict]) -> None:
    """Write report.html into the folder.

    Args:
        folder: of a training run, or any other.
        results: of the evaluation.
        arms: as compared, with the images to show.
        rows: the held-out prompts.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("brushup.evaluation", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "percent": percent}
    gains = shown_differences(results)
    page = environment.get_template("report.html.jinja").render(
        results=results.for_others(),
        verdicts=[(name, *verdict(gain)) for name, gain in gains.items()],
        warnings=distinct_signs(results.reward_hacking),
        gains=gains,
        chart=interval_chart(gains),
        examples=examples(arms, rows, judged=results.trained_policies[0]),
        by={"category": "By category", "difficulty": "By difficulty"},
    )
    (folder / "report.html").write_text(page)


def short_report(results: Results) -> str:
    """Return the table of the arms, the verdicts and the signs of reward hacking, for the terminal."""
    lines = [results_table(results.arms), ""]
    for name, gain in shown_differences(results).items():
        judgement, figures = verdict(gain)
        lines.append(f"{name}: {judgement}" + (f", {figures}" if figures else ""))
    lines += [f"reward hacking? {sign}" for sign in distinct_signs(results.reward_hacking)]
    return "\n".join(lines)


def shown_differences(results: Results) -> dict[str, dict[str, Any]]:
    """Return the differences between each trained policy and each arm before it, by "A - B"."""
    policies = results.trained_policies
    return {name: gain for name, gain in results.differences.items() if name.split(" - ")[0] in policies}


def total_gain(gain: dict[str, Any]) -> dict[str, Any]:
    """Return the paired difference in the total; with a single reward it is that of the reward."""
    return gain["reward"] if "reward" in gain else next(iter(gain.values()))


def verdict(gain: dict[str, Any]) -> tuple[str, str]:
    """Return what a difference shows, in words, and the figures behind it."""
    total = total_gain(gain)
    if total["ci95"] is None:
        return "fewer than two prompts to compare", ""
    low, high = total["ci95"]
    judgement = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    interval = f"95 % interval {low:+.3f} to {high:+.3f}"
    return judgement, f"reward {total['mean']:+.3f} ({interval}), wins on {percent(gain['win_rate'])} of the prompts"


def _number(value: float | None, signed: bool = False) -> str:
    return "-" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def interval_chart(gains: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return where zero, the means and the intervals stand on a common scale, in percent of its width.

    Returns:
        `zero`, and `lines`, each with `name`, `gain`, `mean`, `low` and `high`; None if no difference has an interval.
    """
    totals = {name: total_gain(gain) for name, gain in gains.items() if total_gain(gain)["ci95"]}
    if not totals:
        return None
    ends = [0.0] + [end for total in totals.values() for end in total["ci95"]]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low + margin) / (high - low + 2 * margin), 2)

    lines = [
        {"name": name, "gain": total, "mean": place(total["mean"])}
        | dict(zip(("low", "high"), map(place, total["ci95"]), strict=True))
        for name, total in totals.items()
    ]
    return {"zero": place(0.0), "lines": lines}


def examples(arms: dict[str, Arm], rows: Sequence[dict], judged: str) -> list[dict[str, Any]]:
    """Return, of each category, the prompts that gained most and least over the user prompt, and others at random.

    Args:
        arms: with the images to show.
        rows: the held-out prompts.
        judged: the arm whose gain counts.

    Returns:
        Of each prompt what the page shows, the highest gain first.
    """
    before, after = arms["original"].totals, arms[judged].totals
    gains = {
        index: after[index] - before[index]
        for index in range(len(rows))
        if None not in (before[index], after[index]) and all(arm.images[index] for arm in arms.values())
    }
    by_category: dict[str, list[int]] = defaultdict(list)
    for index in sorted(gains, key=gains.get, reverse=True):
        by_category[rows[index].get("category") or ""].append(index)
    count = EXAMPLES_OF_A_KIND * (3 if len(by_category) == 1 else 1)
    kind_of: dict[int, str] = {}
    rng = random.Random(0)
    for indices in by_category.values():
        kinds = {"best": indices[:count], "worst": indices[::-1][:count]}
        rest = [index for index in indices if index not in kinds["best"] + kinds["worst"]]
        kinds["random"] = rng.sample(rest, min(count, len(rest)))
        for kind, chosen in kinds.items():
            for index in chosen:
                kind_of.setdefault(index, kind)
    return [
        {
            "user_prompt": rows[index]["user_prompt"],
            "category": rows[index].get("category") or "",
            "difficulty": rows[index].get("difficulty") or "",
            "kind": kind_of[index],
            "gain": gains[index],
            "arms": [
                {
                    "name": name,
                    "prompt": arm.prompts[index],
                    "rewards": arm.rewards[index],
                    "malformed": arm.malformed[index],
                    "checker_accuracy": arm.checker_accuracy[index],
                    "image": _data_url(arm.images[index]),
                    "is_pixel_art": max(arm.images[index].size) <= PIXEL_ART,
                }
                for name, arm in arms.items()
                if arm.rewards[index] is not None
            ],
        }
        for index in sorted(kind_of, key=gains.get, reverse=True)
    ]


def _data_url(image: Image.Image) -> str:
    kind = "png" if max(image.size) <= PIXEL_ART else "webp"
    file = io.BytesIO()
    image.save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
