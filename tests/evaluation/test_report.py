"""The report of an evaluation, from made-up arms; from real ones, in a browser: test_evaluate.py."""

import re

import pytest
from PIL import Image

from brushup.evaluation.arm import Arm
from brushup.evaluation.compare import Measures
from brushup.evaluation.report import examples, group_table, interval_chart, short_report, write_report
from brushup.evaluation.results import Results
from brushup.evaluation.verdicts import headline, verdict


WICKED = '<script>document.title="mine"</script>"><img src=x onerror=alert(1)> a red circle'
TOKEN = "hf_sesame"


def arm(*scores, prompt="a cat"):
    count = len(scores)
    rewards = [{"clip": score} for score in scores]
    images = [Image.new("RGB", (32, 32))] * count
    return Arm(
        ["p"] * count,
        [prompt] * count,
        rewards,
        images,
        [None] * count,
        [{}] * count,
        [False] * count,
        [1.0] * count,
        totals=[*scores],
    )


@pytest.mark.parametrize(
    ("ci95", "judgement"),
    [
        ([0.1, 0.3], "better"),
        ([-0.3, -0.1], "worse"),
        ([-0.1, 0.3], "no difference shown"),
        (None, "fewer than two prompts to compare"),
    ],
)
def test_a_verdict_says_no_more_than_the_interval_shows(ci95, judgement):
    assert verdict({"clip": {"mean": 0.2, "ci95": ci95}, "win_rate": 0.5})[0] == judgement


def test_the_first_lines_say_what_a_reader_wants_to_know():
    """Better or not, by how much, how many prompts it harms, and that the best of N was chosen by the reward."""
    arms = {"original": arm(0.2, 0.2, 0.2, 0.2), "untrained": arm(0.3, 0.1, 0.2, 0.2)}
    arms |= {"best_of_8 untrained": arm(0.9, 0.4, 0.6, 0.5), "trained": arm(0.8, 0.5, 0.6, 0.1)}
    arms["oracle trained"] = arms["original"].with_better(arms["trained"], range(4))
    for name, accuracy in (
        ("original", [0, 0, 1, 1]),
        ("best_of_8 untrained", [1, 0, 1, 0]),
        ("trained", [1, 1, 0, 1]),
    ):
        arms[name].checker_accuracy = [float(value) for value in accuracy]
    results = Results.compare(arms, Measures([{"user_prompt": "p"}] * 4, {"clip": 1.0}, None, {}))
    for name in ("best_of_8 untrained", "oracle trained"):
        results.arms[name]["chosen_by_reward"] = True
    text = headline(results, "trained")
    assert text.startswith("trained is better than the user's prompt: reward +0.300 (95 % interval ")
    assert "Of 4 prompts it harms 25.0% by the reward and 25.0% by the checker." in text
    assert "best of 8 untrained rewrites, which the reward chose: no difference shown, reward -0.100 (" in text
    assert "by the checker, which did not choose: no difference shown, +25.0 points (" in text
    report = short_report(results)
    assert report.startswith(text) and "| best_of_8 untrained † |" in report and "flatters it" in report
    assert "\ntrained - best_of_8 untrained †: no difference shown" in report and "- oracle" not in report
    alone = {name: arms[name] for name in ("original", "untrained")}
    assert headline(Results.compare(alone, Measures([{}] * 4, {"clip": 1.0}, None, {})), "trained") == ""


def test_what_a_user_writes_can_be_no_script_and_no_secret_is_told(tmp_path):
    """A prompt, a category or a setting with markup is shown as it is."""
    rows = [{"user_prompt": WICKED, "category": "<b>"}] * 2
    arms = {name: arm(0.1, 0.2, prompt=WICKED) for name in ("original", "static", "untrained", "trained")}
    evaluation = {
        **{"prompts": WICKED, "generator": "me/sd", "generator_init_kwargs": {"token": TOKEN}},
        **{"images_per_prompt": 1, "weights": {"clip": 1.0}, "success_threshold": None},
        "policies": {"untrained": "me/policy", "trained": "runs/tiny"},
    }
    found = {"training": [f"{WICKED} fell (steps 1 to 5)"]}
    results = Results.compare(arms, Measures(rows, {"clip": 1.0}, None, {}), evaluation=evaluation)
    results.reward_hacking = found
    for summary in results.arms.values():
        summary |= {"seconds": 1.0, "images_drawn": 2}
    write_report(tmp_path, results, arms, rows)
    page = (tmp_path / "report.html").read_text()
    assert "<script>document" not in page and "<img src=x" not in page and "<b>\n" not in page
    assert "&lt;script&gt;document" in page and TOKEN not in page
    assert not re.findall(r"(?:src|href)=\"?(?!data:|x )[^ \"&]+", page.split("<body>")[1].split("<script>")[0])
    assert "trained - original: no difference shown" in short_report(results)
    assert "reward hacking? " in short_report(results) and "Reward hacking?" in page


def test_the_examples_are_the_best_the_worst_and_others_of_each_category(monkeypatch):
    scores = [0.9, 0.1, 0.5, 0.4, 0.3, 0.2, 0.8, 0.7, 0.6]
    rows = [{"user_prompt": str(score), "category": "x" if score > 0.1 else "y"} for score in scores]
    arms = {"original": arm(*[0.0] * 9), "untrained": arm(*[0.0] * 9), "left": arm(*scores), "right": arm(*[0.0] * 9)}
    chosen = examples(arms, rows, judged="left")
    kinds = {float(example["user_prompt"]): example["kind"] for example in chosen}
    assert [kinds[score] for score in (0.9, 0.8, 0.2, 0.3)] == ["best", "best", "worst", "worst"]
    assert kinds[0.1] == "best" and sum(kind == "random" for kind in kinds.values()) == 2
    assert [example["gain"] for example in chosen] == sorted(scores, reverse=True)  # all of them
    assert all([shown["name"] for shown in example["arms"]] == list(arms) for example in chosen)
    arms["right"].images, arms["right"].rewards = [None, *arms["right"].images[1:]], [None, *arms["right"].rewards[1:]]
    failed = examples(arms, rows, judged="left")[-1]
    assert (failed["user_prompt"], failed["gain"], failed["kind"]) == ("0.9", None, "")
    monkeypatch.setattr("brushup.evaluation.report.PROMPTS_WITH_IMAGES", 8)
    chosen = examples(arms, rows, judged="left")
    for example in chosen[:-1]:
        assert all(bool(shown["image"]) == bool(example["kind"]) for shown in example["arms"])
    assert len(chosen) == 9 and "" in {example["kind"] for example in chosen}


def test_what_training_gains_in_each_category_shows():
    """Here nothing in Korean: the gain over the user's own prompt alone would hide that."""
    rows = [
        {"user_prompt": str(score), "category": category} for category in ("korean", "order") for score in range(2)
    ]
    arms = {"original": arm(0.1, 0.1, 0.1, 0.1), "untrained": arm(0.9, 0.8, 0.2, 0.1)}
    arms["trained"] = arm(0.9, 0.8, 0.6, 0.7)
    table = group_table(Results.compare(arms, Measures(rows, {"clip": 1.0}, None, {})), "category")
    gain = table[0].index("trained - untrained")
    assert "+0.000</b> (+0.000 to +0.000)" in table[1][gain] and "+0.500</b> (+0.400 to +0.600)" in table[2][gain]
    assert '<b class="good">+0.750' in table[1][table[0].index("trained - original")]


@pytest.mark.parametrize(
    ("interval", "ticks"),
    [([0.2, 0.62], ["0", "+0.2", "+0.4", "+0.6"]), ([-0.03, 0.01], ["-0.03", "-0.02", "-0.01", "0", "+0.01"])],
)
def test_the_chart_has_ticks_at_round_numbers(interval, ticks):
    chart = interval_chart({"trained - original": {"clip": {"mean": sum(interval) / 2, "ci95": interval}}})
    assert list(chart["ticks"]) == ticks and list(chart["ticks"].values()) == sorted(chart["ticks"].values())
    (line,) = chart["lines"]
    assert 0 < chart["ticks"][ticks[0]] and line["low"] < line["mean"] < line["high"] < 100


def test_a_table_has_each_skill_of_the_questions_and_what_training_gains_in_it():
    """A prompt has questions of one skill or another; one could not be scored."""
    asked = [{"color": 0.2, "count": 0.8}, {"color": 0.4}, {"count": 0.6}, {"color": 0.3}]
    scores = [{"clip": 0.1} | {f"questions/{skill}": score for skill, score in parts.items()} for parts in asked]
    better = [{name: score + 0.1 for name, score in parts.items()} for parts in scores]
    arms = {name: arm(0.1, 0.1, 0.1, 0.1) for name in ("original", "untrained", "trained")}
    for name, rewards in (("original", scores), ("untrained", scores), ("trained", [*better[:3], None])):
        arms[name].rewards = rewards
    assert arms["original"].mean_rewards() == {"clip": pytest.approx(0.1)}
    results = Results.compare(arms, Measures([{"user_prompt": "a"}] * 4, {"clip": 1.0}, None, {}))
    header, color, count = group_table(results, "skill")
    assert header == ["skill", "original", "untrained", "trained", "trained - original", "trained - untrained"]
    assert color[:4] == ["questions/color", "0.300", "0.300", "0.400"]
    assert count[:4] == ["questions/count", "0.700", "0.700", "0.800"]
    assert all("+0.100</b> (+0.100 to +0.100)" in cell for row in (color, count) for cell in row[4:])
