"""The forecast that each run prints after its second step."""

import re
import time

import pytest
from transformers import CompileConfig

from brushup.training.cost import Cost
from brushup.training.trainer import PromptEnhancerTrainer
from support.training import StubWorker, make_trainer


class RemoteWorker(StubWorker):
    """A stand-in for a service that takes its time: the policy waits for it."""

    is_remote = True

    def submit(self, jobs, return_images=False):
        future = super().submit(jobs, return_images)
        future.result = slow(future.result)
        return future


def slow(result):
    def wait(timeout=None):
        time.sleep(0.4)
        return result(timeout)

    return wait


def said(trainer, capsys) -> str:
    trainer.add_callback(Cost(trainer))
    trainer.train()
    return capsys.readouterr().out


def test_it_says_where_a_step_goes_and_what_is_left(tmp_path, capsys):
    text = said(make_trainer(tmp_path, StubWorker(), max_steps=4), capsys)
    step = re.search(
        r"^a step +([\d.]+) s: write ([\d.]+) s, wait for images ([\d.]+) s, train ([\d.]+) s$", text, re.M
    )
    total, *parts = map(float, step.groups())
    assert sum(parts) == pytest.approx(total, abs=0.03) and parts[0] > 0 and parts[2] > 0
    run = re.search(r"^the run +(\d+) images a step, ([\d.]+) images/s; ([\d.]+) hours left to train$", text, re.M)
    assert 0 < int(run[1]) <= 8 and float(run[3]) == round(2 * total / 3600, 2)
    assert text.count("a step ") == 1 and "waste" not in text


def test_a_policy_that_waits_for_a_service_is_told_which_setting_helps(tmp_path, capsys):
    text = said(make_trainer(tmp_path, RemoteWorker(), max_steps=3), capsys)
    assert re.search(r"^waste +the policy waits \d\d% of a step for images: max_staleness: 1", text, re.M)


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr("brushup.training.cost.peak_memory", lambda: (18 * 2**30, 80 * 2**30))


@pytest.mark.parametrize("compile_config", [None, CompileConfig()])
def test_writing_that_is_not_compiled_is_named(tmp_path, on_a_gpu, monkeypatch, capsys, compile_config):
    write = PromptEnhancerTrainer._write
    monkeypatch.setattr(PromptEnhancerTrainer, "_write", lambda *rows: time.sleep(0.5) or write(*rows))
    trainer = make_trainer(tmp_path, StubWorker())
    trainer.generation_config.compile_config = compile_config
    named = re.search(
        r"^waste +writing takes \d\d% of a step, because only whole weights", said(trainer, capsys), re.M
    )
    assert bool(named) == (compile_config is None)


def test_micro_batches_far_from_filling_the_memory_are_named(tmp_path, on_a_gpu, capsys):
    trainer = make_trainer(tmp_path, StubWorker(), per_device_train_batch_size=1, gradient_accumulation_steps=8)
    text = said(trainer, capsys)
    assert "memory    at most 18.0 GiB of a GPU (22%)" in text
    assert "per_device_train_batch_size 4 with gradient_accumulation_steps 2 trains the same" in text
