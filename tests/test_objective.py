"""Transforms, gates and weights: by themselves, and in the trainer."""

import json
import math

import numpy as np
import pytest
import torch
from test_trainer import StubWorker, history, make_trainer, table

from brushup.config import RewardConfig
from brushup.objective import Objective, check_rewards, parse_transforms


NOBODY = np.zeros(4, dtype=bool)
NO_GAINS = np.full((4, 2), np.nan)


def objective(weights=(1.0, 0.5), **settings):
    return Objective.from_config(RewardConfig(reward_funcs=["clip", "compression"], **settings), weights)


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
        values, _ = shaped.train_on(rewards, NO_GAINS, NOBODY, failed)
        seen = np.delete(batches[: number + 1].ravel(), [11] if number >= 2 else [])
        kept = ~failed
        assert values[kept, 1] == pytest.approx((batch[kept] - seen.mean()) / (seen.std(ddof=1) + 1e-4))
        assert values[kept, 0] == pytest.approx(batch[kept]) and np.isnan(values[failed]).all()


def test_a_gate_holds_rows_back_and_leaves_monitors():
    gated = Objective({"clip": 1.0, "compression": 0.0}, gates={"clip": 0.28})
    rewards = np.array([[0.27, 0.9], [0.28, 0.8], [0.5, 0.7], [0.1, 0.6]])
    values, held_back = gated.train_on(rewards, NO_GAINS, NOBODY, NOBODY)
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
        values, held_back = objective(weights, reward_gates=gate).train_on(rewards, NO_GAINS, malformed, NOBODY)
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
    assert shaped.totals(after, before) == [pytest.approx(0.6 + 0.25), 0.0, 0.0, None, None]
    assert shaped.totals(before, before)[0] == pytest.approx(0.4 + 0.25)  # no worse than itself


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"reward_funcs": ["clop"]}, "unknown reward 'clop': did you mean 'clip'"),
        ({"reward_kwargs": {"clip": {"modle": 3}}}, "reward_kwargs of 'clip': .*'modle'; it takes .*model_name"),
        ({"reward_kwargs": {"length": {"target": 9}, "clop": {}}}, "reward_kwargs: unknown reward 'clop'"),
        ({"reward_transforms": {"clop": "zscore"}}, "reward_transforms: unknown reward 'clop'"),
        ({"reward_transforms": {"clip": "log"}}, "reward_transforms: log of clip is unknown; there is zscore"),
        ({"reward_transforms": {"clip": {"clamp": 0.3}}}, r"clamp of clip is 0.3; it must be \[low, high\]"),
        ({"reward_transforms": {"clip": {"scale": [0.3, 0.3]}}}, r"scale of clip is \[0.3, 0.3\]"),
        (
            {"reward_gates": {"safety": 1}},
            r"'safety' is not among reward_funcs \(clip, length\).*weight 0",
        ),
        ({"reward_gates": {"clip": "high"}}, "reward_gates: clip is 'high'; it must be a number"),
        ({"gain_gates": {"length": 0}}, "gain_gates: 'length' looks at no picture"),
        (
            {"reward_funcs": ["quality_score", "brushup.rewards.quality_score:quality_score"]},
            "reward_funcs: two rewards have the same name: quality_score, quality_score",
        ),
        ({"reward_funcs": ["diversity"]}, "images_per_prompt is 1, but the reward 'diversity' .* set it to 2 or more"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    config = RewardConfig(
        **{"reward_funcs": ["clip", "length"], "reward_kwargs": {"length": {"target": 9}}} | settings
    )
    if config.reward_funcs[-1] == "a.py:clip":
        with pytest.raises(ValueError, match=message):
            Objective.from_config(config, [1.0, 1.0])
    else:
        with pytest.raises(ValueError, match=message):
            check_rewards(config, images_per_prompt=1)


def test_settings_may_be_json_as_flags_are():
    config = RewardConfig(reward_gates='{"clip": 0.28}', reward_transforms='{"clip": {"clamp": [0.1, 0.4]}}')
    assert Objective.from_config(config, [1.0]).gates == {"clip": 0.28}


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
        reward_gates={"clip": 0.4},
    )
    trainer.train()
    rewrites, raw = table(trainer, "rewrite"), table(trainer, "raw_clip")
    quality = table(trainer, "raw_quality_score")
    assert raw == pytest.approx([0.0 if rewrite is None else len(rewrite) % 7 / 7 for rewrite in rewrites])
    passed = [rewrite is not None and clip >= 0.4 for rewrite, clip in zip(rewrites, raw, strict=True)]
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


def test_gain_over_the_picture_of_the_users_own_prompt(tmp_path):
    """From the same seeds, drawn once for a group; a rewrite that is worse is held back."""
    worker = StubWorker(lambda job: 0.4 if job.prompt == job.user_prompt else by_length(job))
    trainer = make_trainer(tmp_path, worker, max_steps=1, images_per_prompt=2, gain_gates={"clip": 0.0})
    trainer.train()
    rewrites, own = worker.batches
    assert {(job.user_prompt, job.seed) for job in own} == {(job.user_prompt, job.seed) for job in rewrites}
    assert len(own) == len(set(own)) == 2 * 2 and all(job.prompt == job.user_prompt for job in own)
    raw = table(trainer, "raw_clip")
    written = [rewrite is not None for rewrite in table(trainer, "rewrite")]
    gains = [clip - 0.4 for clip, ok in zip(raw, written, strict=True) if ok]
    assert history(trainer, "gain/clip") == [pytest.approx(np.mean(gains))]
    assert history(trainer, "gain/win_rate") == [pytest.approx(np.mean([gain > 0 for gain in gains]))]
    rewarded = [reward for reward, ok in zip(table(trainer, "clip"), written, strict=True) if ok]
    assert rewarded == pytest.approx([0.4 + gain if gain >= 0 else 0.0 for gain in gains])


def test_a_row_whose_own_prompt_could_not_be_drawn_is_left_out_if_its_gain_decides(tmp_path):
    def verdict(job):
        return "no picture" if job.prompt == job.user_prompt == prompts[0] else by_length(job)

    prompts = []
    worker = StubWorker(verdict)
    submit = worker.submit
    worker.submit = lambda jobs, **kw: prompts.append(jobs[0].user_prompt) or submit(jobs, **kw)
    trainer = make_trainer(tmp_path, worker, max_steps=1, gain_gates={"clip": -1.0})
    trainer.train()
    asked = table(trainer, "user_prompt")
    written = [rewrite is not None for rewrite in table(trainer, "rewrite")]
    left_out = [prompt == prompts[0] and ok for prompt, ok in zip(asked, written, strict=True)]
    assert any(left_out) and [math.isnan(reward) for reward in table(trainer, "clip")] == left_out
    # Only logged, it decides nothing
    prompts.clear()
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


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [0.5] * 3", "reward 'mine' returned 3 scores for 8 rewrites"),
        ("return ['good'] * len(prompts)", "reward 'mine' failed: ValueError: could not convert string to float"),
        ("raise KeyError('oops')", "reward 'mine' failed: KeyError: 'oops'"),
    ],
)
def test_a_broken_reward_is_named(tmp_path, body, message):
    (tmp_path / "mine.py").write_text(f"def mine(prompts, completions, **columns):\n    {body}\n")
    rewards = ["clip", f"{tmp_path}/mine.py:mine"]
    trainer = make_trainer(tmp_path, StubWorker(), reward_funcs=rewards, max_failed_batches=1)
    with pytest.raises(RuntimeError, match=message):
        trainer.train()


def test_an_async_reward(tmp_path):
    (tmp_path / "mine.py").write_text(
        "async def mine(prompts, completions, **columns):\n    return [0.5] * len(prompts)\n"
    )
    trainer = make_trainer(tmp_path, StubWorker(), max_steps=1, reward_funcs=[f"{tmp_path}/mine.py:mine"])
    trainer.train()
    assert set(table(trainer, "rewrite")) and set(trainer._logs["rewards"]["mine"]) <= {0.0, 0.5}


def test_z_scores_and_the_watch_go_on_after_a_resume(tmp_path):
    options = {"reward_transforms": {"clip": "zscore"}, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = make_trainer(tmp_path / "whole", StubWorker(), **options)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", StubWorker(), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert vars(resumed.objective.z_scores["clip"]) == pytest.approx(vars(whole.objective.z_scores["clip"]))
    steps = [batch["step"][0] for batch in resumed.hacking_watch.batches]
    assert steps == [1, 2, 3, 4]
    assert json.loads((tmp_path / "whole" / "checkpoint-4" / "reward_state.json").read_text())["found"] == []
