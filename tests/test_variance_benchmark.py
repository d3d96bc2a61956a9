"""benchmarks/variance.py: what it computes of tables and curves with known answers; its first part runs."""

import json
import subprocess
import sys
from concurrent.futures import Future

import numpy as np
import pytest
from conftest import REPOSITORY
from scipy.linalg import hadamard

from brushup.worker import RenderJob


sys.path.append(str(REPOSITORY / "benchmarks"))
import variance


def group(rewards: np.ndarray, answers: list[str]) -> variance.Group:
    return variance.Group(rewards, answers, set(answers), len(answers))


def test_noise_follows_the_covariance():
    # Rows of a Hadamard matrix are uncorrelated, of variance 1. All rewards share one, and each has one of its own.
    patterns = hadamard(16).astype(float)
    rewards = patterns[1:9] + patterns[9] + np.arange(8)[:, None]
    found = variance.compare_noise([group(rewards, list("abcdefgh"))] * 2)
    assert found["theory"]["ratio"] == pytest.approx(0.5)
    assert found["correlation_of_different_rewrites"] == pytest.approx(0.5)
    for images in (1, 2, 4):
        assert found["images_per_prompt"][images]["advantage"]["ratio"] == pytest.approx(0.5, abs=0.04)
    independent = variance.noise(group(rewards, list("abcdefgh")), 2, "independent", np.random.default_rng(0))
    assert independent["advantage"] == pytest.approx(8 * (1 - 1 / 8) * 2 / 2, rel=0.05)  # G (1 - 1/G) v / K


def test_equal_rewrites():
    alike = group(np.repeat(hadamard(16)[1:2], 8, axis=0).astype(float), ["a"] * 8)
    paired, independent, distinct = (
        variance.noise(alike, 1, kind, np.random.default_rng(0)) for kind in variance.KINDS
    )
    assert paired["advantage"] == paired["scaled"] == 0 and paired["pictures"] == 1
    assert distinct == paired
    assert independent["advantage"] > 1 and independent["scaled"] > 1 and independent["pictures"] == 8
    assert independent["gradient"] == pytest.approx(0)  # the advantages of a group add up to 0


def test_ratio_of_sums():
    found = variance.ratio_of_sums([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    assert found == {"ratio": pytest.approx(0.5), "ci95": pytest.approx([0.5, 0.5])}
    found = variance.ratio_of_sums([[1.0, 5.0], [1.0, 1.0]], [[2.0, 2.0], [1.0, 3.0]])
    assert found["ratio"] == pytest.approx(6 * 2 / (4 * 4)) and found["ci95"][0] < 0.75 < found["ci95"][1]


def test_reach():
    points = [
        {"step": step, "pictures": pictures, "reward": reward}
        for step, pictures, reward in ((0, 0, 0.5), (10, 300, 0.6), (20, 500, 0.8), (30, 700, 0.4))
    ]
    assert variance.reach(points, "pictures", 0.7) == (pytest.approx(400), True)
    assert variance.reach(points, "step", 0.7) == (pytest.approx(15), True)
    assert variance.reach(points, "step", 0.9) == (30, False)


def test_distinct_seeds_are_independent_but_for_equal_rewrites():
    patterns = hadamard(16).astype(float)
    rewards = patterns[[1, 1, 2, 3]] + patterns[9]
    some = variance.Group(rewards, ["a", "a", "b", "c"], set("abc"), 4)
    found = variance.advantages(some, 1, "distinct", False, np.random.default_rng(0))
    assert (found[:, 0] == found[:, 1]).all()
    assert np.cov(found.T)[2, 3] == pytest.approx(-0.25, abs=0.1)  # of 2 (x - mean), with nothing in common


@pytest.mark.parametrize(("kind", "seeds"), [("paired", 1), ("independent", 3), ("distinct", 2)])
def test_counting_worker(kind, seeds):
    class Remembers:
        token_limits = {"clip": 32}

        def submit(self, jobs, return_images=False):
            self.jobs = list(jobs)
            return Future()

    behind = Remembers()
    worker = variance.CountingWorker(behind, kind, seed=0)
    jobs = [RenderJob(prompt, "a cat", 7) for prompt in ("a", "a", "b")]
    worker.submit(jobs)
    assert [job.prompt for job in behind.jobs] == ["a", "a", "b"] and worker.token_limits == {"clip": 32}
    assert len({job.seed for job in behind.jobs}) == seeds
    assert worker.drawn == (3 if kind == "independent" else 2)  # equal jobs are drawn once


@pytest.mark.slow  # a process that loads PyTorch and diffusers
def test_noise(tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/variance.py", "--only", "noise", "--prompts", "3", "--pool", "3"),
            *("--adapter", "nowhere", "--output", str(tmp_path / "variance.json")),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "there is no nowhere" in done.stdout and "| advantage |" in done.stdout
    results = json.loads((tmp_path / "variance.json").read_text())
    ratios = results["paired_over_independent"]
    of_one_picture = results["noise"]["untrained"]["images_per_prompt"]["1"]
    assert ratios == {"variance": of_one_picture["advantage"]["ratio"], "pictures_to_reward": None}
    assert ratios["variance"] == pytest.approx(results["noise"]["untrained"]["theory"]["ratio"], rel=0.1)
