"""The trainer with the tiny policy; a stand-in worker says what the test needs about each picture."""

import json
import math

import pytest
import torch
from PIL import Image

from brushup.render.job import paired_seeds
from brushup.training.callbacks import ParametersMustChange
from support.training import StubWorker, history, make_trainer, table


def test_every_trainable_parameter_changes_and_no_frozen_one(tmp_path):
    trainer = make_trainer(tmp_path, StubWorker(), max_steps=3)
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    assert trainable and changed == trainable


def test_training_that_changes_nothing_is_an_error(tmp_path):
    trainer = make_trainer(tmp_path, StubWorker(), learning_rate=0.0)
    trainer.add_callback(ParametersMustChange())
    with pytest.raises(RuntimeError, match="training changed no parameter: check learning_rate"):
        trainer.train()
    trainer = make_trainer(tmp_path, StubWorker())
    trainer.add_callback(ParametersMustChange())
    trainer.train()


def test_a_group_is_drawn_from_the_same_seeds_and_each_step_from_others(tmp_path):
    """And each job, also of a user's own prompt, has the columns of its row that the worker's rewards read."""
    questions = [{"question": "Is there a cat?", "answer": "yes", "needs": [], "skill": "object"}]
    rows = {"a cat": {"questions": questions}, "a dog": {"questions": None}}
    lines = [json.dumps({"user_prompt": prompt, "n": 1} | row) for prompt, row in rows.items()]
    (tmp_path / "few.jsonl").write_text("\n".join(lines))
    worker = StubWorker()
    worker.columns = ["questions"]
    trainer = make_trainer(tmp_path, worker, prompts=tmp_path / "few.jsonl", images_per_prompt=2, log_gain=True)
    trainer.train()
    assert {job.prompt == job.user_prompt for jobs in worker.batches for job in jobs} == {True, False}
    for step, jobs in enumerate(worker.batches):
        seeds = {}
        for job in jobs:
            seeds.setdefault(job.user_prompt, set()).add(job.seed)
            assert json.loads(job.columns) == ({"questions": questions} if job.user_prompt == "a cat" else {})
        assert seeds == {prompt: set(paired_seeds(trainer.args.seed, step, prompt, 2)) for prompt in seeds}


def test_a_failed_picture_leaves_its_row_out_and_nothing_else(tmp_path, caplog):
    """One picture of one rewrite fails: that row has no reward in any column and no advantage; the others count."""
    failed = []

    def verdict(job):
        failed.append(job.prompt) if not failed else None
        return "out of memory (said the test)" if job.prompt == failed[0] else len(job.prompt) % 7 / 7

    trainer = make_trainer(
        tmp_path, StubWorker(verdict), max_steps=1, reward_funcs=["clip", "keyword_retention"], images_per_prompt=2
    )
    trainer.train()
    rewrites, advantages = table(trainer, "rewrite"), list(trainer._logs["advantages"])
    rewards = [list(trainer._logs["rewards"][name]) for name in ("clip", "keyword_retention")]
    left_out = [rewrite == failed[0] for rewrite in rewrites]
    assert 0 < sum(left_out) < len(left_out)
    for row, out in enumerate(left_out):
        assert [math.isnan(column[row]) for column in rewards] == [out, out]
        assert advantages[row] == 0 if out else True
    group = [i for i in range(4) if not left_out[i]]
    totals = torch.tensor([rewards[0][i] + rewards[1][i] for i in group])
    wanted = (totals - totals.mean()) / (totals.std() + 1e-4)
    assert [advantages[i] for i in group] == pytest.approx(wanted.tolist(), abs=1e-3)
    assert history(trainer, "render/failed") == [sum(left_out) / 8]
    assert "rows are left out of this batch" in caplog.text and "out of memory" in caplog.text


def test_a_malformed_answer_has_reward_zero_and_is_not_drawn(tmp_path):
    (tmp_path / "mine.py").write_text("def mine(prompts, completions, **columns):\n    return [0.7] * len(prompts)\n")
    worker = StubWorker(lambda job: 0.9)
    rewards = ["clip", f"{tmp_path}/mine.py:mine"]
    trainer = make_trainer(tmp_path, worker, max_steps=1, max_completion_length=6, reward_funcs=rewards)
    trainer.train()  # six tokens are too few: most answers are cut off
    rewrites = table(trainer, "rewrite")
    assert None in rewrites
    assert len(worker.batches[0]) == sum(rewrite is not None for rewrite in rewrites)
    for name in ("clip", "mine"):
        assert [r == 0 for r in trainer._logs["rewards"][name]] == [rewrite is None for rewrite in rewrites]
    assert history(trainer, "render/malformed") == [rewrites.count(None) / 8]


def test_keep_is_the_users_prompt_and_is_drawn_once(tmp_path):
    """Beside the user's own prompt, which a gate of the gain draws, too: both are the same jobs."""
    worker = StubWorker(lambda job: 0.9)
    trainer = make_trainer(tmp_path, worker, max_steps=1, gain_gates={"clip": 0.0})
    write, finished = trainer.processing_class.batch_decode, []

    def decode(ids, **options):
        finished[:] = [row for row, tokens in enumerate(ids) if tokens[-1] in trainer.eos_token_ids][:3]
        return ["KEEP." if row in finished else text for row, text in enumerate(write(ids, **options))]

    trainer.processing_class.batch_decode = decode
    trainer.train()
    rewrites, user_prompts = table(trainer, "rewrite"), table(trainer, "user_prompt")
    assert finished and all(rewrites[row] == user_prompts[row] for row in finished) and rewrites != user_prompts
    assert [trainer._logs["rewards"]["clip"][row] for row in finished] == pytest.approx([0.9] * len(finished))
    kept = [rewrite == prompt for rewrite, prompt in zip(rewrites, user_prompts, strict=True)]
    assert history(trainer, "render/kept") == [sum(kept) / 8]
    (jobs,) = worker.batches
    written = [rewrite for rewrite in rewrites if rewrite is not None]
    assert [job.prompt for job in jobs] == [*written, *dict.fromkeys(user_prompts)]
    assert len(set(jobs)) == len(set(written) | set(user_prompts))


def test_it_stops_when_nothing_can_be_scored(tmp_path):
    def broken(job):
        raise ConnectionError("no worker at this address")

    trainer = make_trainer(tmp_path, StubWorker(broken), max_steps=9, max_failed_batches=2)
    with pytest.raises(RuntimeError, match="no rewrite of the last 2 batches .* no worker at this address"):
        trainer.train()


def test_a_batch_of_which_nothing_was_rendered_is_rendered_again(tmp_path):
    """As if the worker had not been away for a while."""

    def away_for_a_while(job):
        if len(worker.batches) in (2, 3):
            raise ConnectionError("the worker is away")
        return len(job.prompt) % 7 / 7

    worker = StubWorker(away_for_a_while)
    unbroken = make_trainer(tmp_path, StubWorker())
    unbroken.train()
    broken = make_trainer(tmp_path, worker)
    broken.train()
    assert worker.batches[1] == worker.batches[2] == worker.batches[3] == unbroken.worker.batches[1]
    for column in ("rewrite", "clip"):
        assert table(broken, column) == table(unbroken, column)
    assert history(broken, "render/failed") == [0, 0]


def test_a_reward_that_raises_leaves_rows_out_instead_of_ranks_apart(tmp_path):
    (tmp_path / "mine.py").write_text("def mine(prompts, completions, **columns):\n    raise KeyError('oops')\n")
    trainer = make_trainer(
        tmp_path, StubWorker(), reward_funcs=["clip", f"{tmp_path}/mine.py:mine"], max_failed_batches=2, max_steps=9
    )
    with pytest.raises(RuntimeError, match="KeyError: 'oops'"):
        trainer.train()


def test_a_reward_that_the_worker_does_not_give_is_an_error_and_not_zero(tmp_path):
    (tmp_path / "mine.py").write_text("def mine(images, user_prompts, prompts):\n    return [0.5] * len(images)\n")
    trainer = make_trainer(
        tmp_path, StubWorker(), reward_funcs=["clip", f"{tmp_path}/mine.py:mine"], max_failed_batches=1
    )
    with pytest.raises(RuntimeError, match="the worker gave no score of the reward 'mine'"):
        trainer.train()


def test_sample_pictures_are_saved(tmp_path):
    make_trainer(tmp_path, StubWorker(), max_steps=3, log_images_steps=2).train()
    files = sorted(file.name for file in (tmp_path / "images").iterdir())
    assert files == ["step-000000.png", "step-000002.png"]
    assert Image.open(tmp_path / "images" / files[0]).width > 3 * 160


def test_image_tokens_cannot_be_generated(tmp_path):
    """Even a policy that wants nothing more than to write image and video placeholders."""
    trainer = make_trainer(tmp_path, StubWorker(), max_steps=1)
    config = trainer.model.config
    banned = [config.image_token_id, config.video_token_id]
    head = trainer.model.get_base_model().lm_head
    bias = torch.zeros(head.out_features)
    bias[banned] = 1000
    head.bias = torch.nn.Parameter(bias, requires_grad=False)
    written = []
    generate = trainer._generate
    trainer._generate = lambda prompts: written.extend(generate(prompts)[1]) or generate(prompts)
    trainer.train()
    assert written and not any(token in banned for ids in written for token in ids)


def test_a_text_only_policy_trains(tmp_path, text_policy):
    trainer = make_trainer(tmp_path, StubWorker(), model=text_policy)
    trainer.train()
    assert len(history(trainer, "reward")) == 2 and history(trainer, "render/malformed")[0] < 0.5
    assert all(p.abs().max() > 0 for name, p in trainer.model.named_parameters() if "lora_B" in name)


def test_names_that_a_user_sees_in_the_tracker(tmp_path):
    trainer = make_trainer(tmp_path, StubWorker(), max_steps=2, reward_funcs=["clip", "quality_score"])
    trainer.train()
    assert 0 <= history(trainer, "render/wait_share")[0] < 1
    names = set(trainer.state.log_history[0])
    assert {"rewards/clip/mean", "rewards/quality_score/mean", "reward", "frac_reward_zero_std"} <= names
    assert {"render/malformed", "render/failed", "render/seconds", "render/wait_seconds"} <= names


def test_a_row_that_one_reward_skips_is_left_out_whole(tmp_path):
    """TRL alone would compare it with the others by the sum of fewer rewards."""
    (tmp_path / "mine.py").write_text(
        "def mine(prompts, completions, **columns):\n    return [None] + [0.5] * (len(prompts) - 1)\n"
    )
    trainer = make_trainer(
        tmp_path,
        StubWorker(lambda job: 0.9),
        reward_funcs=["clip", f"{tmp_path}/mine.py:mine"],
        max_steps=1,
        max_completion_length=64,
    )
    trainer.train()
    assert [math.isnan(reward) for reward in table(trainer, "clip")] == [True] + [False] * 7
    assert list(trainer._logs["advantages"])[0] == 0
    assert history(trainer, "rewards/mine/mean")[0] <= 0.5


def test_a_picture_beside_the_prompt_reaches_the_policy(tmp_path):
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    rows = [{"user_prompt": f"like this, number {n}", "image": "red.png"} for n in range(4)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trainer = make_trainer(tmp_path, StubWorker(), prompts=tmp_path / "prompts.jsonl")
    shown = []
    trainer.model.get_base_model().model.visual.register_forward_hook(lambda *_: shown.append(1))
    trainer.train()
    assert shown and len(history(trainer, "reward")) == 2
