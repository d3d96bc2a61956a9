"""The report of an evaluation: results.json, report.md, and report.html, one file with all its pictures."""

import base64
import io
import json
import random
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from brushup.comparison import markdown_table, results_table
from brushup.evaluation import Arm
from brushup.reward_hacking import signs_in


EXAMPLES_OF_A_KIND = 2  # of each category; without categories three times as many
PIXEL_ART = 64  # pixels: smaller pictures are shown with hard edges


def write_report(output: Path, results: dict[str, Any], arms: dict[str, Arm], rows: list[dict]) -> str:
    """Writes the three files; what training left in results.json (`validation`, `settings`, `reward_hacking`) stays.

    Args:
        output: the folder of a training run, or any other.
        results: of `compare`, with what the recipe adds.
        arms: as compared.
        rows: the prompts.

    Returns:
        The report in short, for the terminal.
    """
    output.mkdir(parents=True, exist_ok=True)
    file = output / "results.json"
    training = json.loads(file.read_text()) if file.is_file() else {}
    results = {name: training[name] for name in ("validation", "settings") if name in training} | results
    results["reward_hacking"] = training.get("reward_hacking", {}) | results["reward_hacking"]
    warnings = signs_in(results)
    file.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    verdicts = [verdict(name, gains) for name, gains in shown_differences(results).items()]
    (output / "report.md").write_text(markdown_report(results, verdicts, warnings))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("brushup", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": _number, "percent": _percent}
    page = environment.get_template("report.html.jinja").render(
        results=results,
        verdicts=verdicts,
        warnings=warnings,
        gains=shown_differences(results),
        chart=interval_chart(shown_differences(results)),
        curves=training_curves(output),
        examples=examples(arms, rows),
        by={"category": "By category", "difficulty": "By difficulty"},
    )
    (output / "report.html").write_text(page)
    shown = [f"reward hacking? {warning}" for warning in warnings]
    return "\n".join([results_table(results["arms"]), "", *verdicts, *shown, "", f"saved to {output}/report.html"])


def policies(results: dict[str, Any]) -> list[str]:
    """The arms that are trained policies."""
    return [name for name in results["evaluation"]["policies"] if name != "untrained"]


def shown_differences(results: dict[str, Any]) -> dict[str, dict]:
    """Each trained policy against all that comes before it."""
    return {name: gains for name, gains in results["differences"].items() if name.split(" - ")[0] in policies(results)}


def total(gains: dict[str, Any]) -> dict[str, Any]:
    """The difference in the weighted sum; with a single reward that is the reward's own."""
    return gains["reward"] if "reward" in gains else next(iter(gains.values()))


def verdict(name: str, gains: dict[str, Any]) -> str:
    """In words, what a difference shows."""
    gain = total(gains)
    if gain["ci95"] is None:
        return f"{name}: fewer than two prompts to compare"
    low, high = gain["ci95"]
    shows = "better" if low > 0 else "worse" if high < 0 else "no difference shown"
    return (
        f"{name}: {shows}, reward {gain['mean']:+.3f} (95 % interval {low:+.3f} to {high:+.3f}), wins on "
        f"{gains['win_rate']:.1%} of the prompts"
    )


def _number(value: float | None, signed: bool = False) -> str:
    return "–" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def markdown_report(results: dict[str, Any], verdicts: list[str], warnings: list[str]) -> str:
    """The tables, without pictures."""
    setting = results["evaluation"]
    arms = results["arms"]
    lengths = [["prompts", "tokenizer", "mean length", "limit", "cut off"]]
    lengths += [
        [name, tokenizer, f"{counts['mean']:.1f}", str(counts["limit"]), _percent(counts["share_cut"])]
        for name, arm in arms.items()
        for tokenizer, counts in arm["tokens"].items()
    ]
    shares = [["prompts", "over threshold", "above original", "quality score", "malformed", "failed"]]
    names = ("success_rate", "above_original", "quality_score", "malformed", "failed")
    shares += [[name, *(_percent(arm[share]) for share in names)] for name, arm in arms.items()]
    parts = [
        f"# Evaluation on {setting['prompts']}",
        f"Generator `{setting['generator']}`, {setting['images_per_prompt']} picture(s) a prompt, from the same seeds "
        f"in each line; weights {setting['weights']}.",
        results_table(arms),
        "\n".join(f"- {line}" for line in verdicts),
        "\n".join(["## Reward hacking?", "", *(f"- {line}" for line in warnings)]) if warnings else "",
        markdown_table(shares),
        markdown_table(lengths) if len(lengths) > 1 else "",
    ]
    for by in ("category", "difficulty"):
        groups = next(iter(arms.values()))[f"by_{by}"]
        if groups:
            lines = [[by, "n", *arms]]
            lines += [
                [group, str(groups[group]["n"]), *(_number(arm[f"by_{by}"][group]["reward"]) for arm in arms.values())]
                for group in groups
            ]
            parts += [f"## Reward by {by}", markdown_table(lines)]
    return "\n\n".join(part for part in parts if part) + "\n"


def interval_chart(differences: dict[str, dict]) -> dict[str, Any] | None:
    """Where the means and intervals of differences stand on a common scale, in percent of its width."""
    gains = {name: total(gain) for name, gain in differences.items() if total(gain)["ci95"]}
    if not gains:
        return None
    ends = [0.0] + [end for gain in gains.values() for end in gain["ci95"]]
    low, high = min(ends), max(ends)
    margin = 0.06 * (high - low) or 1.0

    def place(value: float) -> float:
        return round(100 * (value - low + margin) / (high - low + 2 * margin), 2)

    lines = [
        {"name": name, "mean": place(gain["mean"]), "low": place(gain["ci95"][0]), "high": place(gain["ci95"][1])}
        | {"gain": gain}
        for name, gain in gains.items()
    ]
    return {"zero": place(0.0), "lines": lines}


def training_curves(output: Path) -> list[dict[str, Any]]:
    """What the training run in `output` logged, as curves: the reward in training, and of the held-out prompts.

    Returns:
        For each curve its `name`, the `points` of an SVG polyline in a box of 600 x 180, `last` (its last value) and,
        alike for all, `low`, `high` (of the values) and `steps` (of the run).
    """
    file = output / "trainer_state.json"
    history = json.loads(file.read_text())["log_history"] if file.is_file() else []
    shown = {"reward": "reward, training prompts", "eval_reward": "reward, held-out prompts"}
    series = {
        title: [(entry["step"], entry[key]) for entry in history if entry.get(key) is not None]
        for key, title in shown.items()
    }
    series = {title: points for title, points in series.items() if len(points) > 1}
    if not series:
        return []
    values = [value for points in series.values() for _, value in points]
    low, high = min(values), max(values)
    steps = max(step for points in series.values() for step, _ in points)

    def place(step: int, value: float) -> str:
        return f"{600 * step / steps:.1f},{170 - 160 * (value - low) / ((high - low) or 1):.1f}"

    return [
        {"name": title, "points": " ".join(place(*point) for point in points), "last": points[-1][1]}
        | {"low": low, "high": high, "steps": steps}
        for title, points in series.items()
    ]


def examples(arms: dict[str, Arm], rows: list[dict]) -> list[dict[str, Any]]:
    """Of each category the prompts that gained most and least over the user's own, and some at random.

    The gain is that of the first trained policy, the arm after `untrained`.
    """
    names = list(arms)
    judged = arms[names[names.index("untrained") + 1]]
    before, after = arms["original"].totals, judged.totals
    gains = {
        index: after[index] - before[index]
        for index in range(len(rows))
        if None not in (before[index], after[index]) and all(arm.pictures[index] for arm in arms.values())
    }
    by_category: dict[str, list[int]] = {}
    for index in sorted(gains, key=gains.get, reverse=True):
        by_category.setdefault(rows[index].get("category") or "", []).append(index)
    count = EXAMPLES_OF_A_KIND * (3 if len(by_category) == 1 else 1)
    chosen: dict[int, str] = {}
    rng = random.Random(0)
    for indices in by_category.values():
        kinds = {"best": indices[:count], "worst": indices[::-1][:count]}
        rest = [index for index in indices if index not in kinds["best"] + kinds["worst"]]
        kinds["random"] = rng.sample(rest, min(count, len(rest)))
        for kind, some in kinds.items():
            for index in some:
                chosen.setdefault(index, kind)
    return [
        {
            "user_prompt": rows[index]["user_prompt"],
            "category": rows[index].get("category") or "",
            "difficulty": rows[index].get("difficulty") or "",
            "kind": chosen[index],
            "gain": gains[index],
            "arms": [
                {
                    "name": name,
                    "prompt": arm.prompts[index],
                    "rewards": arm.rewards[index],
                    "malformed": arm.malformed[index],
                    "right": arm.right[index],
                    "picture": _data_url(arm.pictures[index]),
                    "small": max(arm.pictures[index].size) <= PIXEL_ART,
                }
                for name, arm in arms.items()
                if arm.rewards[index] is not None
            ],
        }
        for index in sorted(chosen, key=gains.get, reverse=True)
    ]


def _data_url(picture: Image.Image) -> str:
    file = io.BytesIO()
    if max(picture.size) <= PIXEL_ART:
        picture.save(file, "png")
        return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    picture.save(file, "webp", quality=85)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
