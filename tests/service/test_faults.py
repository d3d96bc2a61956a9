"""Things that die, or break, while a run renders with the service: real processes, the tiny world."""

import json
import os
import re
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas
import psutil
import pytest
from conftest import few_prompts

from brushup.render.job import RenderJob
from brushup.render.service.client import HttpWorker
from support.launching import RECIPE, TWO_CPU_RANKS, on_two_cpus, recipe, run, start, wait_for
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


def rows_of(folder: Path) -> pandas.DataFrame:
    """Each row of each step."""
    return pandas.concat(map(pandas.read_parquet, sorted((folder / "out" / "completions").glob("*.parquet"))))


def assert_all_scored(folder: Path, rows: int) -> None:
    table = rows_of(folder)
    assert len(table) == rows and table["clip"].notna().all()


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


@pytest.fixture(scope="module")
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
    assert_all_scored(tmp_path, STEPS * 16)
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
        assert_all_scored(folder, 3 * 32)


def test_a_service_that_comes_back_is_waited_for(mortal, tmp_path):
    service = mortal
    training = Training(two_ranks(tmp_path, service.url), tmp_path)
    training.wait_for(r"step +2/")
    service.kill()
    time.sleep(12)
    service.start()
    code, said = training.end()
    assert code == 0, said[-3000:]
    times_said = len(re.findall(rf"the worker at {service.url} does not answer \(\w+\): asking again", said))
    assert 2 <= times_said <= 20  # two ranks, once in five seconds, for some 35 s
    assert_all_scored(tmp_path, STEPS * 16)


def test_a_service_that_never_comes_back_stops_all_ranks_with_one_error_and_a_checkpoint(mortal, tmp_path):
    service = mortal
    limits = ("--worker_timeout", "12", "--max_failed_batches", "2")
    training = Training(two_ranks(tmp_path, service.url, *limits), tmp_path)
    training.wait_for(r"step +2/")
    service.kill()
    code, said = training.end()
    assert code != 0
    errors = set(re.findall(r"RuntimeError: (no rewrite .*)", said))
    assert len(errors) == 1, said[-3000:]
    error = errors.pop()
    assert service.url in error and f"python recipes/serve.py --config {RECIPE[2]} --port {service.port}" in error
    checkpoint = Path(re.search(r"--resume_from_checkpoint (\S+)", error)[1])
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
    assert 2 <= step < STEPS

    service.start()
    done = run(two_ranks(tmp_path, service.url, *limits, "--resume_from_checkpoint", str(checkpoint)))
    assert re.findall(r"step +(\d)/", done.stdout) == [str(n) for n in range(step + 1, STEPS + 1)]
    late = pandas.read_parquet(tmp_path / "out" / "completions" / f"completions_{STEPS:05d}.parquet")
    assert late["clip"].notna().all()


BREAKING = """
import time
import torch
from brushup.render.renderer import Renderer

draw_batch = Renderer._draw_batch

def draw_with_breaking_pipeline(renderer, prompts, seeds):
    draw = renderer.pipeline

    def pipeline(prompt, **arguments):
        if "too much memory" in prompt:
            raise torch.OutOfMemoryError("said the test")
        drawn = draw(prompt=prompt, **arguments)
        for picture, words in zip(drawn.images, prompt):
            if words == "blank":
                picture[:] = 1
        return drawn

    renderer.pipeline = pipeline
    try:
        return draw_batch(renderer, prompts, seeds)
    finally:
        renderer.pipeline = draw

Renderer._draw_batch = draw_with_breaking_pipeline

class Breaking:
    '''A reward that takes too long for one prompt; loading it makes the generator break at two others.'''

    def __init__(self, device):
        pass

    def __call__(self, images, user_prompts, prompts):
        if "too slow" in prompts:
            time.sleep(9)
        return [0.5] * len(images)
"""


def test_jobs_that_break_are_left_out_and_the_others_count(tmp_path):
    """One takes too long, one runs out of memory, one gives a blank picture."""
    (tmp_path / "breaking.py").write_text(BREAKING)
    service = Service(
        tmp_path,
        *("--worker_timeout", "18", "--reward_funcs", "clip", f"{tmp_path / 'breaking.py'}:Breaking"),
    )
    try:
        worker = HttpWorker(service.url, ["clip", "Breaking"], timeout=60, start_command="")
        prompts = ["a big red circle", "too slow", "too much memory", "blank", "a small blue square"]
        results = dict(zip(prompts, worker.score([RenderJob(p, "a disk", 7) for p in prompts]), strict=True))
    finally:
        service.end()
    assert "drawing took more than 3 s" in results["too slow"].error
    assert "out of memory for a single picture" in results["too much memory"].error
    assert "blank" in results["blank"].error
    for fine in ("a big red circle", "a small blue square"):
        assert results[fine].error is None and set(results[fine].scores) == {"clip", "Breaking"}
    assert all(result.error is None or result.scores == {} for result in results.values())


def test_killed_training_takes_its_service_along_and_goes_on_as_if_it_had_not_been(tmp_path):
    one_by_one = ("--render_batch_size", "1")  # pictures of other batches would differ by rounding
    unbroken, killed = tmp_path / "unbroken", tmp_path / "killed"
    for folder in (unbroken, killed):
        folder.mkdir()
    run(recipe(*flags(unbroken, "spawn", *one_by_one)))

    training = Training(recipe(*flags(killed, "spawn", *one_by_one)), killed)
    training.wait_for(r"step +3/")
    training.process.send_signal(signal.SIGKILL)
    training.end()
    give_up = time.monotonic() + 15
    while left := [p for p in psutil.process_iter(["cmdline"]) if str(killed) in " ".join(p.info["cmdline"] or [])]:
        assert time.monotonic() < give_up, left
        time.sleep(0.2)
    run(recipe(*flags(killed, "spawn", *one_by_one, "--resume_from_checkpoint", "true")))
    columns = ["user_prompt", "rewrite", "clip", "advantage"]
    assert rows_of(killed)[columns].values.tolist() == rows_of(unbroken)[columns].values.tolist()
