"""The forecast that each run prints after its second step."""

import re
import time

import pytest

from brushup.training.cost import Cost
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


def test_micro_batches_far_from_filling_the_memory_are_named(tmp_path, monkeypatch, capsys):
    trainer = make_trainer(tmp_path, StubWorker(), per_device_train_batch_size=4, gradient_accumulation_steps=2)
    monkeypatch.setattr("brushup.training.cost.peak_memory", lambda: (5 * 2**30, 80 * 2**30))
    text = said(trainer, capsys)
    assert "memory    at most 5.0 GiB of a GPU (6%)" in text
    assert "per_device_train_batch_size 8 with gradient_accumulation_steps 1 trains the same" in text
