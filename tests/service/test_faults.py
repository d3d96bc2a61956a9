"""Things that die, or break, while a run renders with the service: real processes, the tiny world."""

import json
import os
import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas
import psutil
import pytest
from conftest import few_prompts

from brushup.render.job import RenderJob
from brushup.render.service.client import HttpWorker
from brushup.render.service.launch import SERVE
from support.launching import RECIPE, TOKEN, TWO_CPU_RANKS, on_two_cpus, recipe, run, start, wait_for
from support.service import Service


pytestmark = pytest.mark.slow
STEPS = 5


def flags(folder: Path, url: str, *more: str) -> list[str]:
    return [
        *("--validation_prompts", few_prompts(folder, 4), "--output_dir", str(folder / "out")),
        *("--max_steps", str(STEPS), "--logging_steps", "1", "--save_steps", "1", "--worker", url, *more),
    ]


def two_ranks(folder: Path, url: str, *more: str) -> list[str]:
    options = flags(folder, url, "--per_device_train_batch_size", "8", *more)
    return on_two_cpus("multi_gpu", folder, *RECIPE, *TWO_CPU_RANKS, *options)


def rows_of(folder: Path, *steps: int) -> pandas.DataFrame:
    """Return the rows of these steps."""
    return pandas.concat(
        pandas.read_parquet(folder / "out" / "completions" / f"completions_{step:05d}.parquet") for step in steps
    )


def assert_all_scored(folder: Path, steps: int, rows: int) -> None:
    table = rows_of(folder, *range(1, steps + 1))
    assert len(table) == steps * rows and table["clip"].notna().all()


def started_by(folder: Path) -> str:
    """Return the settings file of the service that a run in this folder starts."""
    return str(folder / "out" / f"worker-{socket.gethostname()}.yaml")


class Training:
    """The launch command as a process, with its output so far."""

    def __init__(self, command: list[str], folder: Path):
        self.log = folder / "training.log"
        self.process = start(command, self.log)

    def wait_for(self, pattern: str) -> None:
        wait_for(self.log, pattern, self.process)

    def end(self) -> tuple[int, str]:
        code = self.process.wait(timeout=200)
        return code, self.log.read_text()


@pytest.fixture(scope="module", autouse=True)  # at once: it takes some 20 s
def mortal(tmp_path_factory):
    """A service that tests kill and start again."""
    service = Service(tmp_path_factory.mktemp("mortal"))
    yield service
    service.end()


def test_a_replica_that_is_killed_while_it_draws_loses_no_row(service, tmp_path):
    training = Training(two_ranks(tmp_path, service.url), tmp_path)
    training.wait_for(r"step +2/")
    before = {each.pid for each in service.replicas()}
    os.kill(min(before), signal.SIGKILL)
    code, said = training.end()
    assert code == 0, said[-3000:]
    assert_all_scored(tmp_path, STEPS, 16)
    give_up = time.monotonic() + 60
    while len(service.replicas()) < 2 and time.monotonic() < give_up:
        time.sleep(0.5)
    after = {each.pid for each in service.replicas()}
    assert len(after) == 2 and min(before) not in after  # another took its place


def test_two_trainings_share_one_service(service, tmp_path):
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    commands = [
        recipe(*flags(folder, service.url, "--max_steps", "3", "--seed", str(seed)))
        for seed, folder in enumerate(folders)
    ]
    with ThreadPoolExecutor(2) as both:
        list(both.map(run, commands))
    for folder in folders:
        assert_all_scored(folder, 3, 32)


def test_a_service_that_dies(mortal, tmp_path):
    """One that never comes back stops all ranks with one error and a checkpoint; one that comes back is waited for."""
    limits = ("--worker_timeout", "8", "--max_failed_batches", "2")
    url = mortal.url
    training = Training(two_ranks(tmp_path, url, *limits), tmp_path)
    training.wait_for(r"step +2/")
    mortal.kill()
    code, said = training.end()
    assert code != 0
    errors = set(re.findall(r"RuntimeError: (no rewrite .*)", said))
    assert len(errors) == 1, said[-3000:]
    error = errors.pop()
    assert url in error and f"python recipes/serve.py --config {RECIPE[2]} --port {mortal.port}" in error
    checkpoint = Path(re.search(r"--resume_from_checkpoint (\S+)", error)[1])
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    assert 2 <= step < STEPS - 1

    mortal.start()
    training = Training(two_ranks(tmp_path, url, "--resume_from_checkpoint", str(checkpoint)), tmp_path)
    training.wait_for(rf"step +{step + 1}/")
    mortal.kill()
    mortal.start()
    code, said = training.end()
    assert code == 0, said[-3000:]
    said_later = re.split(rf"step +{step + 1}/", said)[1]
    times_said = len(re.findall(rf"the worker at {url} does not answer \(\w+\): asking again", said_later))
    assert 2 <= times_said <= 20  # two ranks, once in five seconds, for some 20 s
    assert re.findall(r"step +(\d)/", said) == [str(n) for n in range(step + 1, STEPS + 1)]
    late = rows_of(tmp_path, *range(step + 1, STEPS + 1))
    assert len(late) == (STEPS - step) * 16 and late["clip"].notna().all()


def test_a_run_starts_its_own_service_again(mortal, tmp_path):
    """One that is killed alone costs time, and no row; the rows are those of a run that nothing happened to."""
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    for folder in (killed, unbroken):
        folder.mkdir()
    training = Training(two_ranks(killed, "spawn"), killed)
    training.wait_for(r"step +2/")
    [program] = [
        p for p in psutil.process_iter(["cmdline"]) if {str(SERVE), started_by(killed)} <= set(p.info["cmdline"] or [])
    ]
    program.kill()
    code, said = training.end()
    assert code == 0, said[-3000:]
    assert said.count("ended (code -9): starting it again") == 1
    assert_all_scored(killed, STEPS, 16)
    run(two_ranks(unbroken, mortal.url))
    steps = range(1, STEPS + 1)
    rows, expected = rows_of(killed, *steps), rows_of(unbroken, *steps)
    assert rows[["user_prompt", "rewrite"]].equals(expected[["user_prompt", "rewrite"]])
    assert rows["clip"].tolist() == pytest.approx(expected["clip"].tolist(), abs=5e-3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_service_says_nothing_of_requests_and_ends_in_peace(mortal, number):
    if mortal.process.poll() is not None:
        mortal.start()
    worker = HttpWorker(mortal.url, ["clip"], timeout=60, start_command="", token=TOKEN)
    assert worker.score([RenderJob("a big red circle", "a disk", 7)])[0].error is None
    commands = " ".join(word for process in mortal.processes() for word in process.cmdline())
    [folder] = set(re.findall(r"/tmp/brushup-\w+", commands))  # of Ray
    assert Path(folder).stat().st_mode & 0o077 == 0
    assert mortal.end(number) == 0
    said = mortal.log.read_text().split("ready: --worker")[1]
    assert said.rstrip().endswith("stopped") and "/v1/" not in said and "SIG" not in said and "Stack" not in said
    assert not Path(folder).exists()


def test_jobs_that_break_are_left_out_and_the_others_count(service):
    """One takes too long, one runs out of memory, one gives a blank image: see support/breaking.py."""
    worker = HttpWorker(service.url, ["clip", "Breaking"], timeout=60, start_command="", token=TOKEN)
    prompts = ["a big red circle", "too slow", "too much memory", "blank", "a small blue square"]
    results = dict(zip(prompts, worker.score([RenderJob(p, "a disk", 7) for p in prompts]), strict=True))
    assert "rendering took more than 6 s" in results["too slow"].error
    assert "out of memory for a single image" in results["too much memory"].error
    assert "blank" in results["blank"].error
    for fine in ("a big red circle", "a small blue square"):
        assert results[fine].error is None and set(results[fine].scores) == {"clip", "Breaking"}
    assert all(result.error is None or result.scores == {} for result in results.values())


def test_killed_training_takes_its_service_along_and_goes_on_as_if_it_had_not_been(service, tmp_path):
    """It goes on with another service, which renders in other batches: scores may differ by rounding."""
    steps = ("--max_steps", "6", "--save_steps", "3")
    training = Training(recipe(*flags(tmp_path, "spawn", *steps)), tmp_path)
    training.wait_for(r"step +5/")
    training.process.send_signal(signal.SIGKILL)
    training.end()
    give_up = time.monotonic() + 15
    while left := [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]:
        assert time.monotonic() < give_up, left
        time.sleep(0.2)
    before = rows_of(tmp_path, 4)
    done = run(recipe(*flags(tmp_path, service.url, *steps, "--resume_from_checkpoint", "true")))
    assert re.findall(r"step +(\d)/", done.stdout) == ["4", "5", "6"]
    after = rows_of(tmp_path, 4)
    assert after[["user_prompt", "rewrite"]].equals(before[["user_prompt", "rewrite"]])
    assert after["clip"].tolist() == pytest.approx(before["clip"].tolist(), abs=5e-3, nan_ok=True)
