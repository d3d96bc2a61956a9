"""The report of an evaluation: report.html, one file with all its images, and a summary for the terminal."""

import base64
import io
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from PIL import Image

from brushup.common import percent
from brushup.evaluation.arm import Arm
from brushup.evaluation.compare import results_table, shown_name
from brushup.evaluation.results import Results
from brushup.evaluation.reward_hacking import distinct_signs
from brushup.evaluation.verdicts import (
    MARK,
    has_mark,
    headline,
    marked_differences,
    shown_differences,
    total_gain,
    verdict,
)


EXAMPLES_OF_A_KIND = 2  # of each category; without categories three times as many
PROMPTS_WITH_IMAGES = 500  # of more prompts only the best, the worst and random ones have images: the file must open
FIGURES_A_LINE = 5
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
    environment.filters |= {"number": _number}
    gains, transferred = marked_differences(results), transferred_results(results)
    chosen = ("oracle ", "best_turn ")  # among other arms' images
    arms = {name: arm for name, arm in arms.items() if not name.startswith(chosen)}
    lines = -(-len(arms) // FIGURES_A_LINE)
    page = environment.get_template("report.html.jinja").render(
        results=results.for_others(),
        headlines=headlines(results),
        verdicts=verdicts(results),
        mark=MARK if has_mark(results) else "",
        warnings=distinct_signs(results.reward_hacking),
        arms_table=arms_table(results),
        group_tables={f"By {name}": group_table(results, name) for name in ("category", "difficulty", "skill")},
        lengths_table=lengths_table(results),
        transfer_table=arms_table(transferred) if transferred else None,
        transfer_verdicts=verdicts(transferred) if transferred else None,
        chart=interval_chart(gains),
        examples=examples(arms, rows, judged=results.trained_policies[0]),
        figures_a_line=-(-len(arms) // lines),  # so that none stands alone
    )
    (folder / "report.html").write_text(page, encoding="utf-8")


def short_report(results: Results) -> str:
    """Return the headlines, the table of the arms, the verdicts and the signs of reward hacking, for the terminal."""
    mark = ["", MARK] if has_mark(results) else []
    lines = [*headlines(results), "", results_table(results.arms), *mark, "", *_verdict_lines(results)]
    if transferred := transferred_results(results):
        lines += ["", f"The same prompts, rendered by {results.transfer['generator']}:", ""]
        lines += [results_table(transferred.arms), "", *_verdict_lines(transferred)]
    lines += [f"reward hacking? {sign}" for sign in distinct_signs(results.reward_hacking)]
    return "\n".join(lines).strip()


def _verdict_lines(results: Results) -> list[str]:
    return [": ".join((name, ", ".join(filter(None, verdict)))) for name, *verdict in verdicts(results)]


def transferred_results(results: Results) -> Results | None:
    """Return the results with the figures of the other generator in place of the first one's; None without any."""
    found = results.transfer
    return found and replace(results, arms=found["arms"], differences=found["differences"], transfer=None)


def verdicts(results: Results) -> list[tuple[str, str, str]]:
    """Return "A - B", the judgement and the figures of each difference that is shown."""
    return [(name, *verdict(gain)) for name, gain in marked_differences(results).items()]


def headlines(results: Results) -> list[str]:
    """Return the headline of each trained policy."""
    return [text for name in results.trained_policies if (text := headline(results, name))]


def _number(value: float | None, signed: bool = False) -> str:
    """Return the number with three decimals, if `signed` with its sign; a dash for None."""
    return "-" if value is None else f"{value:+.3f}" if signed else f"{value:.3f}"


def arms_table(results: Results) -> list[list[str]]:
    """Return the figures of each arm, a row each; the first row is the header."""
    setting, arms = results.evaluation, results.arms
    columns = {
        name + ("" if setting["weights"][name] else " (monitor)"): lambda arm, name=name: _number(arm["rewards"][name])
        for name in arms["original"]["rewards"]
    }
    if len(setting["weights"]) > 1:
        columns["total reward"] = lambda arm: _number(arm["reward"])
    columns["above original"] = lambda arm: percent(arm["above_original"])
    columns["harmed"] = lambda arm: percent(arm["harmed"])
    is_checked = any(arm["checker_accuracy"] is not None for arm in arms.values())
    if is_checked:
        columns["harmed, by checker"] = lambda arm: percent(arm["harmed_by_checker"])
    if setting["success_threshold"] is not None:
        columns[f"over {setting['success_threshold']}"] = lambda arm: percent(arm["success_rate"])
    if is_checked:
        columns["checker accuracy"] = lambda arm: percent(arm["checker_accuracy"])
    columns |= {
        "quality score": lambda arm: _number(arm["quality_score"]),
        "malformed": lambda arm: percent(arm["malformed"]),
        "kept": lambda arm: percent(arm.get("kept")),
        "failed": lambda arm: percent(arm["failed"]),
        "n": lambda arm: str(arm["n"]),
    }
    if "images_drawn" in arms["original"]:
        columns["images rendered"] = lambda arm: f"{arm['images_drawn']:,}"
    rows = [[shown_name(name, arm), *(figure(arm) for figure in columns.values())] for name, arm in arms.items()]
    return [["prompts", *columns], *rows]


def group_table(results: Results, column: str) -> list[list[str]]:
    """Return the figures of each arm of one turn, unless the reward chose its images, and the trained policies' gains.

    Args:
        column: "category" or "difficulty" of the prompts: the total reward; or "skill": each part of a reward.

    Returns:
        A row for each value of the column below the header, which is alone if there is none.
    """
    arms = {name: arm for name, arm in results.arms.items() if not arm.get("chosen_by_reward")}
    arms = {name: arm for name, arm in arms.items() if not name.startswith("revised ")}  # too wide with them
    groups = {name: arm.get(f"by_{column}", {}) for name, arm in arms.items()}
    gains = {
        name: gain.get(f"by_{column}", {})
        for name, gain in shown_differences(results).items()
        if name.endswith((" - original", " - untrained"))
    }
    rows = []
    for value, original in groups["original"].items():
        found, count = [group.get(value) for group in groups.values()], []
        if column != "skill":
            found, count = [summary["reward"] for summary in found], [str(original["n"])]
        intervals = [_interval(gain[value]) if value in gain else "-" for gain in gains.values()]
        rows.append([value, *count, *map(_number, found), *intervals])
    return [[column, *(["n"] if column != "skill" else []), *groups, *gains], *rows]


def lengths_table(results: Results) -> list[list[str]]:
    """Return how long the prompts are for each tokenizer of the generator, a row for each arm below the header."""
    header, rows = ["prompts"], [[name] for name in results.arms]
    for tokenizer, counts in results.arms["original"]["tokens"].items():
        header += [f"{tokenizer}: mean length (reads {counts['limit']} tokens)", f"{tokenizer}: prompts cut off"]
        for row, arm in zip(rows, results.arms.values(), strict=True):
            row += [f"{arm['tokens'][tokenizer]['mean']:.1f}", percent(arm["tokens"][tokenizer]["share_cut"])]
    return [header, *rows]


def _interval(gain: dict[str, Any]) -> Markup | str:
    """Return a paired difference, green if it is above zero, red if below, and its interval."""
    if not gain["ci95"]:
        return "-"
    low, high = gain["ci95"]
    kind = "good" if low > 0 else "bad" if high < 0 else ""
    mean, low, high = (round(value, 3) + 0.0 for value in (gain["mean"], low, high))  # + 0.0: no "-0.000"
    text = f"({low:+.3f} to {high:+.3f})"
    return Markup('<span class="gain"><b class="{}">{:+.3f}</b> {}</span>').format(kind, mean, text)


def interval_chart(gains: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    """Return where the ticks, the means and the intervals stand on a common scale, in percent of its width.

    Returns:
        `ticks`, the place of each by its label, and `lines`, each with `name`, `gain`, `mean`, `low` and `high`; None
        if no difference has an interval.
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
    return {"ticks": {f"{tick:+g}" if tick else "0": place(tick) for tick in _ticks(low, high)}, "lines": lines}


def _ticks(low: float, high: float) -> list[float]:
    """Return up to seven round numbers between the two, zero among them if it is."""
    power = 10.0 ** math.floor(math.log10((high - low) / 6 or 1))
    step = next(power * times for times in (1, 2, 5, 10) if (high - low) / (power * times) <= 6)
    return [round(number * step, 10) for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def examples(arms: dict[str, Arm], rows: Sequence[dict], judged: str) -> list[dict[str, Any]]:
    """Return all prompts, those that gained most over the user prompt first, those that failed last.

    Args:
        arms: with the images to show.
        rows: the held-out prompts.
        judged: the arm whose gain counts.

    Returns:
        Of each prompt what the page shows. Its `kind` is "best", "worst" or "random" if it is one to look at: some of
        each kind in each category; else it is empty.
    """
    before, after = arms["original"].totals, arms[judged].totals
    gains = {
        index: after[index] - before[index]
        for index in range(len(rows))
        if None not in (before[index], after[index]) and all(arm.images[index] for arm in arms.values())
    }
    order = sorted(gains, key=gains.get, reverse=True)
    kind_of = _kinds(order, [row.get("category") or "" for row in rows])
    shown = range(len(rows)) if len(rows) <= PROMPTS_WITH_IMAGES else kind_of
    return [
        {
            "user_prompt": rows[index]["user_prompt"],
            "category": rows[index].get("category") or "",
            "difficulty": rows[index].get("difficulty") or "",
            "kind": kind_of.get(index, ""),
            "gain": gains.get(index),
            "arms": [
                {
                    "name": name,
                    "prompt": arm.prompts[index],
                    "rewards": arm.rewards[index],
                    "malformed": arm.malformed[index],
                    "checker_accuracy": arm.checker_accuracy[index],
                    "image": _data_url(arm.images[index]) if arm.images[index] and index in shown else None,
                    "is_pixel_art": arm.images[index] and max(arm.images[index].size) <= PIXEL_ART,
                }
                for name, arm in arms.items()
            ],
        }
        for index in [*order, *sorted(set(range(len(rows))) - set(order))]
    ]


def _kinds(order: Sequence[int], categories: Sequence[str]) -> dict[int, str]:
    """Return the prompts to look at, each with its kind.

    Args:
        order: the prompts' indices, the highest gain first.
        categories: of all prompts, by index.
    """
    by_category: dict[str, list[int]] = defaultdict(list)
    for index in order:
        by_category[categories[index]].append(index)
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
    return kind_of


def _data_url(image: Image.Image) -> str:
    kind = "png" if max(image.size) <= PIXEL_ART else "webp"
    file = io.BytesIO()
    image.save(file, kind, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"
