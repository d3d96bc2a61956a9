"""The trainer as a `GRPOTrainer`: what TRL's takes works, or is refused by name."""

import itertools
import multiprocessing
import os
import signal
import time

import pytest
import torch
from conftest import TINY_WORLD
from datasets import Dataset
from peft import PromptTuningConfig, get_peft_model
from transformers import Qwen2VLForConditionalGeneration

from brushup.prompts.dataset import load_prompts
from brushup.training.callbacks import StopOnSignal
from support.training import POLICY, StubWorker, history, make_trainer


@pytest.fixture
def held_out():
    rows = load_prompts(str(TINY_WORLD / "validation.jsonl"), "validation")
    return {"first": rows.select(range(3)), "second": rows.select(range(3, 5))}


def test_evaluate_takes_other_prompts_and_several_sets(tmp_path, held_out):
    trainer = make_trainer(tmp_path, StubWorker(), eval_dataset=held_out["first"])
    assert trainer.evaluate()["eval_reward"] and list(trainer.arms) == [0]
    other = trainer.evaluate(held_out["second"], metric_key_prefix="test")
    assert {key.split("_")[0] for key in other} == {"test", "epoch"} and (tmp_path / "test_0.json").is_file()
    assert len(trainer.arms[0].prompts) == 3  # they are not taken for the run's own
    both = trainer.evaluate(held_out)
    assert both["eval_second_reward"] == other["test_reward"] and "eval_first_reward" in both
    named = make_trainer(tmp_path, StubWorker(), eval_dataset=held_out)
    assert named.evaluate("second")["eval_reward"] == other["test_reward"]
    assert "eval_first_reward" in named.evaluate() and not named.arms


def test_evaluate_without_prompts_is_an_error(tmp_path):
    trainer = make_trainer(tmp_path, StubWorker())
    with pytest.raises(ValueError, match="there are no held-out prompts; give it, or the trainer, an eval_dataset"):
        trainer.evaluate()
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("name", ["tools", "rollout_func", "environment_factory"])
def test_other_ways_to_make_completions_are_refused_by_name(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: each completion is rendered as one prompt"):
        make_trainer(tmp_path, StubWorker(), trainer_arguments={name: [print]})


def test_rows_that_are_not_from_load_prompts_are_refused(tmp_path):
    rows = Dataset.from_list([{"prompt": "a cat"}] * 8)
    with pytest.raises(ValueError, match="train_dataset: it must be what load_prompts returns"):
        make_trainer(tmp_path, StubWorker(), trainer_arguments={"train_dataset": rows})


def test_vllm_with_images_is_refused(tmp_path):
    rows = load_prompts(str(TINY_WORLD / "train.jsonl")).select(range(8))
    rows = rows.add_column("image", [None] * 8)
    with pytest.raises(
        ValueError, match="use_vllm: TRL 1.16 hands vLLM .* leave the column `image` and `turns: 2` out"
    ):
        make_trainer(tmp_path, StubWorker(), use_vllm=True, trainer_arguments={"train_dataset": rows})
    with pytest.raises(ValueError, match="use_vllm: .* leave the column `image` and `turns: 2` out"):
        make_trainer(tmp_path, StubWorker(), use_vllm=True, turns=2)


def test_two_turns_of_a_policy_that_reads_text_only_are_refused(tmp_path, text_policy):
    with pytest.raises(ValueError, match="turns: 2 shows the policy its image, but this one reads text only"):
        make_trainer(tmp_path, StubWorker(), model=text_policy, turns=2)


def test_older_rewrites_need_their_log_probabilities(tmp_path):
    with pytest.raises(ValueError, match="max_staleness: 1 needs .* beam search"):
        make_trainer(tmp_path, StubWorker(), max_staleness=1, generation_kwargs={"num_beams": 2})
    policy = Qwen2VLForConditionalGeneration.from_pretrained(POLICY)
    tuned = get_peft_model(policy, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ValueError, match="max_staleness: 1 does not work with prompt tuning"):
        make_trainer(tmp_path, StubWorker(), model=tuned, lora=False, max_staleness=1)


def test_predict_is_the_loss_on_its_rows(tmp_path):
    """Also between two steps that train on the same rewrites, which then go on as if it had not been asked."""
    options = {"num_iterations": 2, "max_steps": 2, "learning_rate": 1e-3, "beta": 0.1}
    losses, trainers = [], []

    class Ask(StopOnSignal):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                other = trainers[1].train_dataset.select(range(8, 16))
                for rows in (other, other.select(range(4))):
                    losses.append(trainers[1].predict(rows).metrics["test_loss"])

    for callbacks in ([], [Ask()]):
        torch.manual_seed(0)
        trainers.append(make_trainer(tmp_path, StubWorker(), **options))
        for callback in callbacks:
            trainers[-1].add_callback(callback)
        trainers[-1].train()
    plain, asked = trainers
    assert losses[0] != losses[1]
    assert history(asked, "grad_norm") == history(plain, "grad_norm") and len(history(plain, "grad_norm")) == 2
    other = {row["user_prompt"] for row in asked.train_dataset.select(range(8, 16))}
    assert any({job.user_prompt for job in batch} <= other for batch in asked.worker.batches)


def test_training_again_after_a_stop_renders_its_own_rewrites(tmp_path):
    """A rollout that was written ahead, for a step that never came, is not trained on."""
    trainer = make_trainer(tmp_path, StubWorker(), max_steps=3, max_staleness=1)

    class Stop(StopOnSignal):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop |= state.global_step == 1

    trainer.add_callback(Stop())
    trainer.train()
    sent = len(trainer.worker.batches)
    assert sent == 2
    trainer.train()
    assert len(trainer.worker.batches) == 2 * sent  # it is stopped after a step again; one was left over


def test_what_is_logged_of_older_rewrites_is_of_the_step_that_trains_on_them(tmp_path):
    trainer = make_trainer(tmp_path, StubWorker(), max_steps=3, max_staleness=1)
    written, write = [], trainer._write

    def write_and_note(*arguments):
        rollout = write(*arguments)
        prompts, completions = rollout.generated[:2]
        written.append((completions, sum(map(len, [*prompts, *completions]))))
        return rollout

    trainer._write = write_and_note
    trainer.train()
    lengths = [sum(map(len, completions)) / len(completions) for completions, _ in written]
    assert history(trainer, "completions/mean_length") == pytest.approx(lengths) and len(set(lengths)) == 3
    assert history(trainer, "num_tokens") == list(itertools.accumulate(tokens for _, tokens in written))


def nothing() -> None:
    time.sleep(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_stops_training_but_not_in_children_of_rewards(tmp_path, number):
    """A pool of processes ends when it is told to; it used to remember the signal, and hang for ever."""
    trainer = make_trainer(tmp_path, StubWorker(), max_steps=4, save_strategy="steps", save_steps=99)
    stop = StopOnSignal()

    class Send(StopOnSignal):
        def on_train_begin(self, args, state, control, **kwargs):
            child = multiprocessing.get_context("fork").Process(target=nothing)
            child.start()
            child.terminate()
            child.join(10)
            assert child.exitcode == -signal.SIGTERM

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                os.kill(os.getpid(), number)

        on_train_end = on_train_begin

    for callback in (stop, Send()):
        trainer.add_callback(callback)
    before = signal.getsignal(number)
    trainer.train()
    assert stop.received == number and trainer.state.global_step in (2, 3)
    assert (tmp_path / f"checkpoint-{trainer.state.global_step}").is_dir() and signal.getsignal(number) == before
