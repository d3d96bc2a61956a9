"""Transforms, gates and weights: by themselves, and in the trainer."""

import json
import math

import numpy as np
import pytest
import torch

from brushup.config import RewardConfig
from brushup.rewards.combine import Objective, parse_transforms
from brushup.rewards.registry import parse_rewards
from brushup.training.hacking_watch import RewardHackingWatch
from support.training import StubWorker, history, make_trainer, table


NOBODY = np.zeros(4, dtype=bool)
NO_GAINS = np.full((4, 2), np.nan)


def objective(weights=(1.0, 0.5), **settings):
    config = RewardConfig(reward_funcs=["clip", "compression"], **settings)
    return Objective.from_specs(parse_rewards(config, weights))


@pytest.mark.parametrize(
    ("transform", "wanted"),
    [
        ({"clamp": [0.2, 0.3]}, [0.2, 0.2, 0.3, 0.3]),
        ({"scale": [0.2, 0.4]}, [-0.5, 0.0, 0.5, 1.0]),
        ({"scale": [0.2, 0.4], "clamp": [0.0, 1.0]}, [0.0, 0.0, 0.5, 1.0]),
        ({"clamp": [0.2, 0.3], "scale": [0.2, 0.4]}, [0.0, 0.0, 0.5, 0.5]),
    ],
)
def test_clamp_and_scale_in_their_order(transform, wanted):
    values = np.array([0.1, 0.2, 0.3, 0.4])
    for step in parse_transforms("clip", transform):
        values = step(values)
    assert values == pytest.approx(wanted)


def test_a_running_z_score_is_that_of_all_values_so_far():
    shaped = objective(reward_transforms={"compression": "zscore"})
    batches = np.random.default_rng(0).normal(0.7, 0.2, (5, 4))
    for number, batch in enumerate(batches):
        rewards = np.stack([batch, batch], axis=1)
        failed = np.array([False, False, False, number == 2])  # not counted
        values, _ = shaped.shape_rewards(rewards, NO_GAINS, NOBODY, failed)
        seen = np.delete(batches[: number + 1].ravel(), [11] if number >= 2 else [])
        kept = ~failed
        assert values[kept, 1] == pytest.approx((batch[kept] - seen.mean()) / (seen.std(ddof=1) + 1e-4))
        assert values[kept, 0] == pytest.approx(batch[kept]) and np.isnan(values[failed]).all()


def test_the_statistics_of_z_scores_are_kept_as_json():
    settings = {"reward_transforms": {"compression": {"clamp": [0, 1], "zscore": True}}}
    rewards = np.random.default_rng(0).random((4, 2))
    before, after = objective(**settings), objective(**settings)
    before.shape_rewards(rewards, NO_GAINS, NOBODY, NOBODY)
    after.load_state({})  # as at the first step
    after.load_state(json.loads(json.dumps(before.state() | {"a reward of another run": [{"count": 1}]})))
    for values in (rewards, rewards**2):
        shaped = [shape.shape_rewards(values, NO_GAINS, NOBODY, NOBODY)[0].tolist() for shape in (before, after)]
        assert shaped[0] == shaped[1]
    assert objective().state() == {}


def test_a_gate_holds_rows_back_and_leaves_monitors():
    gated = Objective({"clip": 1.0, "compression": 0.0}, gates={"clip": 0.28})
    rewards = np.array([[0.27, 0.9], [0.28, 0.8], [0.5, 0.7], [0.1, 0.6]])
    values, held_back = gated.shape_rewards(rewards, NO_GAINS, NOBODY, NOBODY)
    assert held_back.tolist() == [True, False, False, True]
    assert values.tolist() == [[0, 0.9], [0.28, 0.8], [0.5, 0.7], [0, 0.6]]


@pytest.mark.parametrize("weights", [(1.0, 0.5), (1.0, -0.5), (-1.0, -2.0)])
def test_neither_a_malformed_answer_nor_a_gate_ever_pays(weights):
    """Whatever sign rewards and weights have, and for each reward by itself: `normalize_then_sum` looks at each."""
    rng = np.random.default_rng(1)
    for low, high in ((-1.0, 1.0), (-2.0, -1.0), (0.5, 1.0)):
        rewards = rng.uniform(low, high, (4, 2))
        malformed, gate = np.array([True, False, False, False]), {"clip": rewards[1, 0] + 1e-9}
        rewards[2:, 0] = rewards[1, 0] + rng.uniform(0.1, 0.2, 2)
        values, held_back = objective(weights, reward_gates=gate).shape_rewards(rewards, NO_GAINS, malformed, NOBODY)
        weighted = values * weights
        assert held_back.tolist() == [False, True, False, False]
        assert (weighted[:2] <= np.minimum(weighted[2:].min(axis=0), 0) + 1e-12).all()


def test_totals_of_held_out_prompts():
    shaped = objective(
        reward_transforms={"clip": {"scale": [0.0, 0.5]}, "compression": "zscore"},
        reward_gates={"compression": 0.4},
        gain_gates={"clip": 0.0},
    )
    before = [{"clip": 0.2, "compression": 0.5}] * 4 + [None]
    after = [
        {"clip": 0.3, "compression": 0.5},
        {"clip": 0.1, "compression": 0.5},  # worse than the user's own
        {"clip": 0.3, "compression": 0.3},  # not over the gate
        None,
        {"clip": 0.3, "compression": 0.5},  # the user's own failed
    ]
    assert shaped.totals_by_prompt(after, before) == [pytest.approx(0.6 + 0.25), 0.0, 0.0, None, None]
    assert shaped.totals_by_prompt(before, before)[0] == pytest.approx(0.4 + 0.25)  # no worse than itself


# ---------------------------------------------------------------------------------------------- in the trainer


def by_length(job):
    return len(job.prompt) % 7 / 7


def expected_advantages(totals, group=4):
    grouped = torch.tensor(totals).view(-1, group)
    return ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)).flatten().tolist()


def test_a_gated_and_transformed_reward_is_what_is_trained_on(tmp_path):
    trainer = make_trainer(
        tmp_path,
        StubWorker(by_length),
        max_steps=1,
        reward_funcs=["clip", "quality_score"],
        reward_weights=[1.0, 0.5],
        reward_transforms={"clip": {"scale": [0.0, 0.5]}},
        reward_gates={"clip": 0.6},
    )
    trainer.train()
    rewrites, raw = table(trainer, "rewrite"), table(trainer, "raw_clip")
    quality = table(trainer, "raw_quality_score")
    assert raw == pytest.approx([0.0 if rewrite is None else len(rewrite) % 7 / 7 for rewrite in rewrites])
    passed = [rewrite is not None and clip >= 0.6 for rewrite, clip in zip(rewrites, raw, strict=True)]
    assert 0 < sum(passed) < len(passed)
    totals = [2 * c + 0.5 * q if ok else 0.0 for c, q, ok in zip(raw, quality, passed, strict=True)]
    assert list(trainer._logs["advantages"]) == pytest.approx(expected_advantages(totals), abs=1e-3)
    written = [rewrite is not None for rewrite in rewrites]
    assert history(trainer, "render/held_back") == [pytest.approx(1 - sum(passed) / sum(written))]
    clips = [clip for clip, ok in zip(raw, written, strict=True) if ok]
    assert history(trainer, "raw_rewards/clip") == [pytest.approx(np.mean(clips))]


def test_rewards_of_different_size_normalised_one_by_one(tmp_path):
    """TRL's `normalize_then_sum` (GDPO): a reward of tiny differences counts as much as one of large ones."""
    (tmp_path / "mine.py").write_text(
        "def small(prompts, completions, **columns):\n"
        "    return [0.001 * (len(c[0]['content']) % 5) for c in completions]\n"
    )
    trainer = make_trainer(
        tmp_path,
        StubWorker(by_length),
        max_steps=1,
        reward_funcs=["clip", f"{tmp_path}/mine.py:small"],
        multi_objective_aggregation="normalize_then_sum",
    )
    trainer.train()
    columns = [torch.tensor(list(trainer._logs["rewards"][name])).view(-1, 4) for name in ("clip", "small")]
    sums = sum((c - c.mean(1, keepdim=True)) / (c.std(1, keepdim=True) + 1e-4) for c in columns).flatten()
    wanted = (sums - sums.mean()) / (sums.std() + 1e-4)
    assert list(trainer._logs["advantages"]) == pytest.approx(wanted.tolist(), abs=1e-3)


def test_gain_over_the_image_of_the_users_own_prompt(tmp_path):
    """From the same seeds, rendered once for a group; a rewrite that is worse is held back."""
    worker = StubWorker(lambda job: 0.4 if job.prompt == job.user_prompt else by_length(job))
    trainer = make_trainer(tmp_path, worker, max_steps=1, images_per_prompt=2, gain_gates={"clip": 0.0})
    trainer.train()
    (jobs,) = worker.batches
    rewrites, originals = jobs[:-4], jobs[-4:]
    assert {(job.user_prompt, job.seed) for job in originals} == {(job.user_prompt, job.seed) for job in rewrites}
    assert len(originals) == len(set(originals)) == 2 * 2 and all(job.prompt == job.user_prompt for job in originals)
    raw = table(trainer, "raw_clip")
    written = [rewrite is not None for rewrite in table(trainer, "rewrite")]
    gains = [clip - 0.4 for clip, ok in zip(raw, written, strict=True) if ok]
    assert history(trainer, "gain/clip") == [pytest.approx(np.mean(gains))]
    assert history(trainer, "gain/win_rate") == [pytest.approx(np.mean([gain > 0 for gain in gains]))]
    rewarded = [reward for reward, ok in zip(table(trainer, "clip"), written, strict=True) if ok]
    assert rewarded == pytest.approx([0.4 + gain if gain >= 0 else 0.0 for gain in gains])


def test_a_row_whose_gain_decides_is_left_out_if_the_users_prompt_could_not_be_rendered(tmp_path):
    def verdict(job):
        fails = job.prompt == job.user_prompt == worker.batches[0][0].user_prompt
        return "no image" if fails else by_length(job)

    worker = StubWorker(verdict)
    trainer = make_trainer(tmp_path, worker, max_steps=1, gain_gates={"clip": -1.0})
    trainer.train()
    user_prompts, failing = table(trainer, "user_prompt"), worker.batches[0][0].user_prompt
    written = [rewrite is not None for rewrite in table(trainer, "rewrite")]
    left_out = [prompt == failing and ok for prompt, ok in zip(user_prompts, written, strict=True)]
    assert any(left_out) and [math.isnan(reward) for reward in table(trainer, "clip")] == left_out
    # A gain that is only logged decides nothing.
    worker.batches.clear()
    trainer = make_trainer(tmp_path, worker, max_steps=1, log_gain=True)
    trainer.train()
    assert history(trainer, "render/failed") == [0.0] and len(history(trainer, "gain/clip")) == 1


def test_a_reward_that_is_not_finite_leaves_its_row_out(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def mine(prompts, completions, **columns):\n"
        "    return [float('nan'), float('inf'), None] + [0.5] * (len(prompts) - 3)\n"
    )
    trainer = make_trainer(tmp_path, StubWorker(), max_steps=1, reward_funcs=["clip", f"{tmp_path}/mine.py:mine"])
    trainer.train()
    written = [rewrite is not None for rewrite in table(trainer, "rewrite")]
    assert [math.isnan(reward) for reward in table(trainer, "clip")] == written[:3] + [False] * 5
    assert np.isfinite(list(trainer._logs["advantages"])).all()


def test_z_scores_and_the_watch_go_on_after_a_resume(tmp_path):
    options = {"reward_transforms": {"clip": "zscore"}, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make_trainer(tmp_path / "whole", StubWorker(), **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", StubWorker(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    (statistics,) = resumed.objective.state()["clip"]
    assert statistics == pytest.approx(whole.objective.state()["clip"][0]) and statistics["count"] > 16
    watch = resumed.callback(RewardHackingWatch)
    assert [batch["step"][0] for batch in watch.batches] == [1, 2, 3, 4] and watch.found == []


def test_a_revision_has_its_gain_over_the_draft_and_a_loss_counts_twice():
    """The second reward is of the text, and has no gain; the third row is of the first turn."""
    scaled = Objective({"clip": 1.0, "length": 1.0}, {"clip": parse_transforms("clip", {"scale": [0.0, 0.5]})})
    rewards = np.array([[0.4, 0.7], [0.1, 0.7], [0.4, 0.7], [0.2, 0.7]])
    gains = np.array([[0.2, np.nan], [-0.1, np.nan], [0.2, np.nan], [0.0, np.nan]])
    revised, nobody = np.array([True, True, False, True]), np.zeros(4, dtype=bool)
    values, _ = scaled.shape_rewards(rewards, gains, nobody, nobody, revised)
    np.testing.assert_allclose(values, [[0.4, 0.7], [-0.4, 0.7], [0.8, 0.7], [0.0, 0.7]])
