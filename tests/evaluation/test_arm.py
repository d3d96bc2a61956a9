import functools
import json
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from brushup.evaluation.arm import Arm, before_after_sheet, evaluate_prompts, repeat_to_length
from brushup.evaluation.compare import Measures, paired_difference, pairs, results_table, win_rate
from brushup.evaluation.sheet import CELL, GAP, _find_font, _warn_of_boxes, can_write, labelled_grid
from brushup.rewards.combine import Objective
from brushup.rewards.registry import RewardSpec, load_text_rewards
from world import caption, check_pictures


def arm(*scores, prompts=None, tokens=None):
    nothing = [None] * len(scores)
    rewards = [None if score is None else {"clip": score} for score in scores]
    users, tokens = ["p"] * len(scores), tokens or [{}] * len(scores)
    size = len(scores)
    return Arm(
        users, prompts or users, rewards, nothing, nothing, tokens, [False] * size, [1.0] * size, totals=list(scores)
    )


def test_paired_difference_leaves_failed_pairs_out():
    gain = paired_difference([0.3, 0.5, 0.4, 0.9, None], [0.1, 0.2, 0.3, None, 0.5])
    assert gain["mean"] == pytest.approx(0.2)
    assert 0.1 <= gain["ci95"][0] < 0.2 < gain["ci95"][1] <= 0.3
    assert paired_difference([0.3, None], [0.1, 0.2]) == {"mean": None, "ci95": None}  # one pair has no spread


def test_the_interval_holds_the_true_difference_in_about_95_of_100_trials():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(100):
        differences = rng.normal(0.3, 1.0, 80)
        low, high = paired_difference(differences, [0.0] * 80, seed=trial)["ci95"]
        held += low <= 0.3 <= high
    assert 88 <= held <= 100


def test_win_rate_counts_ties_half():
    assert win_rate([0.5, 0.0, 0.3, None], [0.1, 0.0, 0.4, 0.2]) == 0.5
    assert win_rate([None], [0.1]) is None


def test_differences_use_the_totals():
    rewards = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.0}], [{"a": 0.5, "b": 9.0}, {"a": 0.0, "b": 5.0}]
    rows = [{"user_prompt": "p"}] * 2
    for weight, win_rate_, gain in ((0.0, 0.25, -0.25), (0.1, 1.0, 0.45)):
        objective = Objective({"a": 1.0, "b": weight})
        nothing, users = [None] * 2, ["p"] * 2
        before, after = (
            Arm(users, users, scores, nothing, nothing, [{}] * 2, [False] * 2, [1.0] * 2, totals=totals)
            for scores in rewards
            for totals in [objective.totals_by_prompt(scores, rewards[0])]
        )
        differences = Measures(rows, objective.weights, None, {}).differences(after, before)
        assert differences["win_rate"] == win_rate_ and differences["b"]["mean"] == 7.0
        assert differences["reward"]["mean"] == pytest.approx(gain)


def test_a_summary():
    rows = [{"user_prompt": "a cat", "category": c, "difficulty": d} for c, d in (("x", "hard"), ("y", "easy")) * 2]
    measures = Measures(rows, {"clip": 1.0}, success_threshold=0.5, token_limits={"clip": 77})
    original = arm(0.4, 0.4, 0.4, 0.4)
    after = arm(0.6, 0.4, 0.3, None, prompts=["a cat"] * 4, tokens=[{"clip": 78}, {"clip": 77}, {"clip": 10}, {}])
    summary = measures.summary(after, original)
    assert summary["reward"] == summary["rewards"]["clip"] == pytest.approx(1.3 / 3)
    assert summary["success_rate"] == summary["harmed"] == pytest.approx(1 / 3) and summary["above_original"] == 0.5
    assert summary["tokens"]["clip"] == {"mean": 55.0, "share_cut": pytest.approx(1 / 3), "limit": 77}
    assert (summary["n"], summary["failed"], summary["checker_accuracy"]) == (3, 0.25, None)
    assert measures.groups("category") == {"x": [0, 2], "y": [1, 3]}
    assert list(measures.groups("difficulty")) == ["easy", "hard"]
    of_x = measures.summary(after.select([0, 2]), original.select([0, 2]))
    assert of_x["reward"] == pytest.approx(0.45) and of_x["n"] == 2
    nothing = measures.summary(after.select([3]), original.select([3]))
    assert nothing["n"] == 0 and nothing["reward"] is None and nothing["rewards"] == {}


def test_what_of_an_answer_is_the_prompt(worker, validation_rows):
    """Of a policy's answer; a prompt that no policy wrote is a prompt as a whole, quotes and all."""
    rows = [{"user_prompt": 'a sign, "OPEN', "prompt": []}] * 3
    prompts = ["a red ball", "a red ball", 'a sign, "OPEN']
    answers = ["a red ball", 'Prompt: a red ball"', ""]
    evaluate = functools.partial(
        evaluate_prompts, rows=rows, worker=worker, text_rewards={}, images_per_prompt=1, seed=0
    )
    assert evaluate(prompts, answers=answers).prompt_share == [1.0, pytest.approx(10 / 19), 0.0]
    assert evaluate(prompts).prompt_share == [1.0] * 3


def test_an_arm_on_the_tiny_world(worker, validation_rows):
    """Captions that the generator knows, against the same held-out prompts as users wrote them."""
    rows = [row | {"prompt": [{"role": "user", "content": row["user_prompt"]}]} for row in validation_rows]
    rows = [row for row in rows if "null" not in json.dumps(row["scene"])][:12]  # all is said
    text_rewards = load_text_rewards([RewardSpec("keyword_retention")])
    arms = {
        name: evaluate_prompts(prompts, rows, worker, text_rewards, 2, seed=0, checker=check_pictures)
        for name, prompts in {
            "original": [row["user_prompt"] for row in rows],
            "captions": [caption(row["scene"]) for row in rows],
        }.items()
    }
    objective = Objective({"clip": 1.0, "keyword_retention": 0.0})
    for arm in arms.values():
        arm.totals = objective.totals_by_prompt(arm.rewards, arms["original"].rewards)
    measures = Measures(rows, objective.weights, None, worker.token_limits)
    summaries = {name: measures.summary(arm, arms["original"]) for name, arm in arms.items()}
    assert summaries["original"]["rewards"]["keyword_retention"] == 1.0
    assert summaries["captions"]["above_original"] > 0.7 > summaries["original"]["above_original"] == 0.5
    tokens = summaries["captions"]["tokens"]["clip"]
    assert 8 < tokens["mean"] < 24 == tokens["limit"]
    assert arms["captions"].mean_rewards()["clip"] > arms["original"].mean_rewards()["clip"] + 0.3
    accuracy = arms["captions"].checker_accuracy
    assert set(accuracy) <= {0.0, 0.5, 1.0} and len(accuracy) == 12
    assert summaries["captions"]["checker_accuracy"] > 0.8
    assert summaries["captions"]["harmed"] < 0.1 and summaries["captions"]["harmed_by_checker"] == 0.0
    lines = results_table(summaries).splitlines()
    assert lines[0].split()[1::2][-5:] == ["keyword_retention", "checker_accuracy", "harmed", "harmed_by_checker", "n"]
    assert len({len(line) for line in lines}) == 1


def test_a_text_reward_that_fails_is_an_error_of_the_arm(worker, validation_rows, tmp_path):
    """And no exception, which other ranks would wait for; a rank without rows repeats no error of an earlier call."""
    (tmp_path / "mine.py").write_text("def mine(completions, **columns):\n    raise OSError('no dictionary')\n")
    rewards = load_text_rewards([RewardSpec(f"{tmp_path}/mine.py:mine")])
    rows = [row | {"prompt": []} for row in validation_rows[:2]]
    failed = evaluate_prompts(["a cat", "a dog"], rows, worker, rewards, 1, seed=0)
    assert failed.rewards == [None, None]
    assert failed.errors == ["reward 'mine' failed: OSError: no dictionary"]
    assert evaluate_prompts([], [], worker, rewards, 1, seed=0).errors == []


def test_a_rank_without_a_share_adds_nothing(worker):
    assert Arm.joined([arm(0.1), evaluate_prompts([], [], worker, {}, 1, seed=0)]).rewards == [{"clip": 0.1}]


def test_joined_arms_keep_the_order():
    joined = Arm.joined([arm(0.1, 0.2), arm(0.3)])
    assert [row["clip"] for row in joined.rewards] == [0.1, 0.2, 0.3] and len(joined.prompts) == 3


def test_the_better_of_two_arms():
    """At equal totals the first one's; a prompt that failed is never better."""
    first = arm(0.5, 0.5, None, 0.5, prompts=list("abcd"))
    second = arm(0.6, None, 0.1, prompts=list("wyz"))
    better = first.with_better(second, [0, 1, 2])
    assert (better.prompts, better.totals) == (["w", "b", "z", "d"], [0.6, 0.5, 0.1, 0.5])
    assert better.scores("clip") == better.totals and first.with_better(first, range(4)).prompts == first.prompts


def test_a_prompt_is_repeated_to_the_length_of_the_longest_rewrite():
    """In whole repetitions, in the generator's tokens; in words where it could not read one of them."""
    original = arm(0.1, 0.1, 0.1, tokens=[{"clip": 5, "t5": 1}, {"clip": 9}, {}], prompts=["p"] * 3)
    short = arm(0.1, 0.1, 0.1, tokens=[{"clip": 4}, {"clip": 4}, {}], prompts=["one two"] * 3)
    long = arm(0.1, 0.1, 0.1, tokens=[{"clip": 11}, {"clip": 8}, {"clip": 99}], prompts=["one two three"] * 3)
    assert repeat_to_length(original, [short, long]) == ["p, p, p", "p", "p, p, p"]
    assert repeat_to_length(original, [short]) == ["p", "p", "p, p"]


def test_which_arms_are_compared():
    names = ["original", "static", "untrained", "left", "right"]
    assert pairs(names, ["left", "right"]) == [
        *(("static", "original"), ("untrained", "original")),
        *(("left", other) for other in ("original", "static", "untrained")),
        *(("right", other) for other in ("original", "static", "untrained", "left")),
    ]


def test_a_sheet_has_no_prompt_that_would_be_boxes(monkeypatch, caplog):
    """Where no font has Korean letters; that is said once."""
    monkeypatch.setattr("brushup.evaluation.sheet.FONT_FILES", ())
    monkeypatch.setenv("PATH", "")  # no fc-match
    for cached in (_find_font, _warn_of_boxes):
        cached.cache_clear()
    assert can_write("naive “quotes” …") and not can_write("붉은 원")
    rendered = arm(0.1, 0.2, 0.3, prompts=["a red circle", "붉은 원", "a blue box"])
    rendered.images = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    sheet = before_after_sheet(rendered, rendered)
    assert sheet.width == GAP + 2 * (CELL + GAP) and not caplog.text
    colors = {color for _, color in sheet.getcolors(sheet.width * sheet.height)}
    assert (255, 0, 0) in colors and (0, 128, 0) not in colors
    for _ in range(2):
        labelled_grid([("붉은 원", [(rendered.images[0], "a red circle")])])
    assert caplog.text.count("sheets of images show boxes") == 1
    _find_font.cache_clear()


def test_a_sheet_marks_what_the_checker_says():
    """Green for right images, red for wrong ones, nothing without a checker."""
    before, after = arm(0.1, 0.2), arm(0.3, 0.4)
    for rendered in (before, after):
        rendered.images = [Image.new("RGB", (8, 8), "white")] * 2
    right, wrong = (46, 158, 79), (208, 48, 48)

    def marks() -> list[bool]:
        sheet = before_after_sheet(before, after)
        colors = {color for _, color in sheet.getcolors(sheet.width * sheet.height)}
        return [right in colors, wrong in colors]

    assert marks() == [False, False]
    before.checker_accuracy, after.checker_accuracy = [0.0, 0.0], [1.0, 1.0]
    assert marks() == [True, True]
    before.checker_accuracy = [1.0, 0.75]  # of several images, of which one is shown: no mark
    assert marks() == [True, False]


@pytest.mark.skipif(
    not shutil.which("fc-list") or not subprocess.check_output(["fc-list", ":charset=bd89"]),
    reason="no Korean font here",
)
def test_korean_is_written_with_a_font_of_this_machine(caplog):
    def sheet(title: str) -> bytes:
        return labelled_grid([(title, [(Image.new("RGB", (8, 8)), "café × 2 — 원")])]).tobytes()

    assert can_write("붉은 원") and sheet("붉은 원") != sheet("푸른 원") and not caplog.text
