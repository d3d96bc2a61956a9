import numpy as np
import pytest

from brushup.evaluation import Arm, evaluate_prompts, paired_difference, results_table, win_rate
from brushup.rewards import load_reward
from brushup.tiny_world import canonical_caption, check_pictures


def arm(*scores):
    nothing = [None] * len(scores)
    return Arm(["p"] * len(scores), [None if s is None else {"clip": s} for s in scores], nothing, nothing)


def test_paired_difference_leaves_failed_pairs_out():
    before, after = arm(0.1, 0.2, 0.3, None, 0.5), arm(0.3, 0.5, 0.4, 0.9, None)
    gain = paired_difference(after, before, "clip")
    assert gain["mean"] == pytest.approx(0.2)
    assert 0.1 <= gain["ci95"][0] < 0.2 < gain["ci95"][1] <= 0.3


def test_the_interval_holds_the_true_difference_in_about_95_of_100_trials():
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(100):
        differences = rng.normal(0.3, 1.0, 80)
        low, high = paired_difference(arm(*differences), arm(*[0.0] * 80), "clip", seed=trial)["ci95"]
        held += low <= 0.3 <= high
    assert 88 <= held <= 100


def test_win_rate_counts_ties_half_and_uses_the_weights():
    before = Arm(["p"] * 3, [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 0.0}, None], [None] * 3, [None] * 3)
    after = Arm(["p"] * 3, [{"a": 0.5, "b": 9.0}, {"a": 0.0, "b": 5.0}, {"a": 1.0, "b": 0.0}], [None] * 3, [None] * 3)
    assert win_rate(after, before, {"a": 1.0, "b": 0.0}) == 0.25
    assert win_rate(after, before, {"a": 1.0, "b": 0.1}) == 1.0


def test_an_arm_on_the_tiny_world(worker, validation_rows):
    """Captions that the generator knows, against the same held-out prompts as users wrote them."""
    rows = [row | {"prompt": [{"role": "user", "content": row["user_prompt"]}]} for row in validation_rows]
    rows = [row for row in rows if None not in row["scene"].values()][:12]
    text_rewards = {"keyword_retention": load_reward("keyword_retention")}
    arms = {
        name: evaluate_prompts(prompts, rows, worker, text_rewards, 2, seed=0, checker=check_pictures)
        for name, prompts in {
            "original": [row["user_prompt"] for row in rows],
            "canonical": [canonical_caption(row["scene"]) for row in rows],
        }.items()
    }
    assert arms["original"].summary()["rewards"]["keyword_retention"] == 1.0
    assert arms["canonical"].mean_rewards()["clip"] > arms["original"].mean_rewards()["clip"] + 0.3
    assert set(arms["canonical"].right) <= {0.0, 0.5, 1.0} and len(arms["canonical"].right) == 12
    assert arms["canonical"].summary()["checker_accuracy"] > 0.8
    lines = results_table(arms).splitlines()
    assert "right pictures" in lines[0] and len({len(line) for line in lines}) == 1


def test_a_rank_without_a_share_adds_nothing(worker):
    assert Arm.joined([arm(0.1), evaluate_prompts([], [], worker, {}, 1, seed=0)]).rewards == [{"clip": 0.1}]


def test_joined_arms_keep_the_order():
    joined = Arm.joined([arm(0.1, 0.2), arm(0.3)])
    assert [row["clip"] for row in joined.rewards] == [0.1, 0.2, 0.3] and len(joined.prompts) == 3
