"""The trainer with the tiny policy; a stand-in worker says what the test needs about each picture."""

import json
import math
from concurrent.futures import Future

import pytest
import torch
from conftest import TINY_WORLD
from peft import LoraConfig
from PIL import Image

from brushup.config import PromptEnhancerConfig
from brushup.data import load_prompts
from brushup.trainer import PromptEnhancerTrainer
from brushup.training_check import ParametersMustChange
from brushup.worker import RenderResult, paired_seeds


POLICY = str(TINY_WORLD / "policy")


class StubWorker:
    """Answers each job with `verdict(job)`: a clip score, or the error of the machine. Reads four words as tokens."""

    token_limits = {"words": 4}

    def __init__(self, verdict=lambda job: len(job.prompt) % 7 / 7):
        self.verdict = verdict
        self.batches = []

    def submit(self, jobs, return_images=False):
        self.batches.append(jobs)
        future = Future()
        try:
            verdicts = [self.verdict(job) for job in jobs]
            image = Image.new("RGB", (32, 32)) if return_images else None
            future.set_result(
                [
                    RenderResult(error=verdict)
                    if isinstance(verdict, str)
                    else RenderResult({"clip": verdict}, image, tokens={"words": len(job.prompt.split())})
                    for job, verdict in zip(jobs, verdicts, strict=True)
                ]
            )
        except Exception as error:
            future.set_exception(error)
        return future


def make_trainer(
    tmp_path, worker, model=POLICY, lora=True, prompts=TINY_WORLD / "train.jsonl", eval_dataset=None, **options
):
    args = PromptEnhancerConfig(
        output_dir=str(tmp_path),
        **{
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "max_completion_length": 24,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "bf16": False,
            "gradient_checkpointing": False,
            "model_init_kwargs": {"dtype": "float32"} if isinstance(model, str) else None,
            "disable_tqdm": True,
            "use_cpu": True,
            **options,
        },
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return PromptEnhancerTrainer(
        model,
        worker,
        args,
        train_dataset=load_prompts(str(prompts)),
        eval_dataset=eval_dataset,
        peft_config=LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM") if lora else None,
    )


def history(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def table(trainer, column):
    return list(trainer._logs["rewards"][column] if column == "clip" else trainer._logs["extra"][column])


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
    worker = StubWorker()
    trainer = make_trainer(tmp_path, worker, images_per_prompt=2)
    trainer.train()
    for step, jobs in enumerate(worker.batches):
        seeds = {}
        for job in jobs:
            seeds.setdefault(job.user_prompt, set()).add(job.seed)
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


def test_it_stops_when_nothing_can_be_scored(tmp_path):
    def broken(job):
        raise ConnectionError("no worker at this address")

    trainer = make_trainer(tmp_path, StubWorker(broken), max_steps=9, max_failed_batches=2)
    with pytest.raises(RuntimeError, match="no rewrite of the last 2 batches .* no worker at this address"):
        trainer.train()


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
    with pytest.raises(RuntimeError, match="KeyError: 'mine'"):
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
        tmp_path, StubWorker(lambda job: 0.9), reward_funcs=["clip", f"{tmp_path}/mine.py:mine"], max_steps=1
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
