"""The benchmarks run as a user types them; what they measure is not tested."""

import json
import subprocess
import sys

import pytest
from conftest import REPOSITORY


@pytest.mark.slow  # four processes that load PyTorch and diffusers
def test_rewards(tmp_path):
    kwargs = {"clip": {"model_name": "local-dir:data/tiny_world/scorer"}}
    done = subprocess.run(
        [
            *(sys.executable, "benchmarks/rewards.py", "--rewards", "clip", "compression", "image_quality"),
            *("--reward_kwargs", json.dumps(kwargs), "--pictures", "4", "--size", "64", "--rounds", "2"),
            *("--output", str(tmp_path / "rewards.json")),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(":")[0].strip() for line in done.stdout.splitlines()[:4]]
    assert lines == ["clip", "compression", "image_quality", "all together"]
    results = json.loads((tmp_path / "rewards.json").read_text())
    alone, together = results["alone"], results["together"]
    assert all(one["seconds"] > 0 for one in [*alone.values(), together])
    assert 0.01 < alone["clip"]["gigabytes"] < 3  # it loads a model, the others do not
    assert max(alone["compression"]["gigabytes"], alone["image_quality"]["gigabytes"]) < alone["clip"]["gigabytes"]
    for key, ratio in results["together_over_sum"].items():
        assert ratio == pytest.approx(together[key] / sum(one[key] for one in alone.values()))
