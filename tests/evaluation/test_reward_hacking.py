"""Signs of reward hacking on held-out prompts; those while training: tests/training/test_hacking_watch.py."""

import numpy as np
import pytest

from brushup.evaluation.arm import Arm
from brushup.evaluation.reward_hacking import distinct_signs, held_out_signs, length_repetition_and_cuts


def test_length_repetition_and_cuts():
    grown = length_repetition_and_cuts(
        ["a red cat a red cat a red cat", "a cat", ""],
        [{"clip": 90, "t5": 300}, {"clip": 90, "t5": 100}, {}],
        {"clip": 77, "t5": 256},
    )
    assert grown["length"] == [90, 90, None] and grown["cut"] == [1.0, 0.0, None]
    assert grown["repetition"] == [pytest.approx(1 - 3 / 7), 0.0, None]


def arm(reward, monitor, accuracy, prompt="a cat"):
    rng = np.random.default_rng(int(100 * reward))
    rewards = [{"clip": reward + rng.normal(0, 0.05), "monitor": monitor + rng.normal(0, 0.1)} for _ in range(60)]
    shares = (rng.random(60) < accuracy).astype(float).tolist()
    totals = [row["clip"] for row in rewards]
    counts = [{"clip": len(prompt.split())}] * 60
    return Arm(
        ["a cat"] * 60, [prompt] * 60, rewards, [None] * 60, shares, counts, [False] * 60, [1.0] * 60, totals=totals
    )


def test_held_out_signs_are_against_the_best_before():
    earlier = {"step 0": arm(0.3, 0.4, 0.5), "step 50": arm(0.5, 0.6, 0.9)}
    signs = held_out_signs(earlier, "step 100", arm(0.7, 0.45, 0.5), ["monitor"], {"clip": 77})
    assert [sign.name for sign in signs] == ["monitor", "checker_accuracy"]
    assert all("(held-out prompts, step 100 against step 50)" in str(sign) for sign in signs)
    assert held_out_signs(earlier, "step 100", arm(0.7, 0.62, 0.95), ["monitor"], {"clip": 77}) == []
    assert held_out_signs(earlier, "step 100", arm(0.3, 0.2, 0.1), ["monitor"], {"clip": 77}) == []  # no rise
    long = arm(0.7, 0.62, 0.95, prompt="a very very very big cat")
    assert [s.name for s in held_out_signs(earlier, "step 100", long, ["monitor"], {"clip": 4})] == ["length", "cut"]


def test_a_change_that_training_and_evaluation_both_saw_is_told_once():
    change = "clip fell from 0.500 to 0.300 while the reward rose from 0.200 to 0.400"
    found = {
        "training": ["length climbed (steps 1 to 5)", f"{change} (held-out prompts, step 9 against step 0)"],
        "held_out": [f"{change} (held-out prompts, trained against untrained)"],
    }
    assert distinct_signs(found) == found["training"]
