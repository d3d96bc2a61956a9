"""Runs that are stopped, or killed, and go on: the same rewards, step by step, as a run that never was."""

import os
import re
import signal
import time

import pandas
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from brushup.training.callbacks import ParametersMustChange
from brushup.training.checkpoints import last_checkpoint, save_now
from support.launching import RECIPE, TWO_CPU_RANKS, on_two_cpus, recipe, run, start, wait_for
from support.short_run import STEPS, flags
from support.training import StubWorker, make_trainer


def steps_of(out) -> dict[int, list]:
    """Return what each step wrote and got: (user prompt, rewrite, clip, keyword_retention, advantage) of each row."""
    columns = ["user_prompt", "rewrite", "clip", "keyword_retention", "advantage"]
    files = sorted((out / "completions").glob("*.parquet"))
    return {int(file.stem[-5:]): pandas.read_parquet(file)[columns].values.tolist() for file in files}


def is_alive(group: int) -> bool:
    """Return whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def stop(command: list[str], folder, number: int, real: bool = False) -> str:
    """Start a run, signal it in step 4 (all of its processes, or if `real` its launcher), and return its output."""
    log = folder / "log.txt"
    process = start(command, log, real)
    wait_for(log, r"step +3/", process)
    process.send_signal(number)
    process.wait(timeout=120)
    give_up = time.monotonic() + 60
    groups = [process.pid] if real else process.pids
    while time.monotonic() < give_up:  # its children end a little later
        if not any(map(is_alive, groups)):
            return log.read_text()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    raise AssertionError("processes are left: " + log.read_text()[-3000:])


def checkpoint_said(said: str, folder) -> str:
    where = re.search(r"stopped by (\w+) after step (\d); go on with\n +--resume_from_checkpoint (\S+)", said)
    assert where and where[3] == str(folder / "out" / f"checkpoint-{where[2]}")
    assert not (folder / "out" / "results.json").exists()
    return where[3]


@pytest.mark.slow
def test_a_run_stopped_by_ctrl_c_goes_on_as_if_it_had_not_been(short_run, tmp_path):
    """Ctrl-C reaches all processes of the terminal."""
    checkpoint = checkpoint_said(stop(recipe(*flags(tmp_path)), tmp_path, signal.SIGINT), tmp_path)
    done = run(recipe(*flags(tmp_path), "--resume_from_checkpoint", checkpoint))
    assert steps_of(tmp_path / "out") == steps_of(short_run[1])
    assert "| untrained |" in done.stdout  # read from the validation before the stop


@pytest.mark.slow
def test_a_launcher_that_gets_sigterm_leaves_a_checkpoint(tmp_path):
    said = stop(recipe(*flags(tmp_path, prompts=4)), tmp_path, signal.SIGTERM, real=True)
    checkpoint = checkpoint_said(said, tmp_path)
    assert load_file(f"{checkpoint}/adapter_model.safetensors")


@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_checkpoint(short_run, tmp_path):
    stop(recipe(*flags(tmp_path)), tmp_path, signal.SIGKILL)
    done = run(recipe(*flags(tmp_path), "--resume_from_checkpoint", "true"))
    assert f"going on from {tmp_path / 'out' / 'checkpoint-2'}" in done.stdout
    assert steps_of(tmp_path / "out") == steps_of(short_run[1])
    for name in ("validation_3.json", "validation_6.json"):
        assert (tmp_path / "out" / name).read_text() == (short_run[1] / name).read_text()


@pytest.mark.slow
def test_two_ranks_stop_at_the_same_step(tmp_path):
    command = on_two_cpus("multi_gpu", tmp_path, *RECIPE, *flags(tmp_path, prompts=4), *TWO_CPU_RANKS)
    command += ["--per_device_train_batch_size", "8"]
    said = stop(command, tmp_path, signal.SIGTERM)
    step = re.search(r"stopped by SIGTERM after step (\d)", said)
    assert step and (tmp_path / "out" / f"checkpoint-{step[1]}" / "rng_state_1.pth").exists()


def test_a_checkpoint_that_was_killed_while_it_was_written_does_not_count(tmp_path):
    assert last_checkpoint(str(tmp_path)) is None and last_checkpoint(str(tmp_path / "nowhere")) is None
    for name in (
        "checkpoint-9",
        "checkpoint-10",
        "checkpoint-11",
        "checkpoint-12",
        "checkpoint-12.bak",
        "checkpoint-best",
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_model.safetensors").touch()
        (tmp_path / name / "trainer_state.json").write_text('{"global_step": 9}')
    (tmp_path / "checkpoint-11" / "trainer_state.json").unlink()
    (tmp_path / "checkpoint-12" / "trainer_state.json").write_text("")
    assert last_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-10")


def test_a_run_knows_its_checkpoints_from_those_of_another_run_in_the_folder(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    first, second = (make_trainer(tmp_path, StubWorker(), **options) for _ in range(2))
    first.train()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    second.add_callback(StopAfter(1))
    second.train()
    assert last_checkpoint(tmp_path) is None
    assert save_now(second).endswith(f"--resume_from_checkpoint {tmp_path / 'checkpoint-1'}")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    third = make_trainer(tmp_path, StubWorker(), **options)
    third.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")


class StopAfter(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop |= state.global_step >= self.step


def test_a_run_that_had_to_stop_goes_on_as_if_every_image_had_been_rendered(tmp_path):
    """The checkpoint is written in the middle of a step, whose rewrites are written again."""
    healthy = StubWorker()
    whole = make_trainer(tmp_path / "whole", healthy, max_steps=4)
    whole.train()
    fails = StubWorker(lambda job: "out of order" if len(fails.batches) > 2 else len(job.prompt) % 7 / 7)
    with pytest.raises(RuntimeError, match="Go on later with --resume_from_checkpoint") as stopped:
        make_trainer(tmp_path / "broken", fails, max_steps=4).train()
    resumed, mended = None, StubWorker()
    resumed = make_trainer(tmp_path / "broken", mended, max_steps=4)
    resumed.train(resume_from_checkpoint=str(stopped.value).split()[-1])
    assert mended.batches == healthy.batches[2:]


@pytest.mark.parametrize("scheduler", ["linear", "constant"])
def test_a_finished_run_that_is_resumed_trains_no_further(tmp_path, scheduler):
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2, "lr_scheduler_type": scheduler}
    make_trainer(tmp_path, StubWorker(), **options).train()
    resumed = make_trainer(tmp_path, StubWorker(), **options)
    resumed.add_callback(ParametersMustChange())
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert resumed.state.global_step == 2 and not resumed.worker.batches
    saved = load_file(tmp_path / "checkpoint-2" / "adapter_model.safetensors")
    now = {name.replace(".default", ""): weight for name, weight in resumed.model.named_parameters() if "lora" in name}
    assert saved.keys() == now.keys() and all(torch.equal(now[name], weight) for name, weight in saved.items())


@pytest.mark.slow
def test_nothing_to_resume_from_starts_anew(short_run):
    done, out = short_run
    assert f"no checkpoint in {out} yet: starting anew" in done.stdout
    assert list(steps_of(out)) == list(range(1, STEPS + 1))
