"""The benchmarks run as a user types them; the figures that they measure are not tested."""

import json
import sys

import pytest

from support.launching import run


@pytest.mark.slow  # three processes that load PyTorch and diffusers
def test_rewards(tmp_path):
    kwargs = {"clip": {"model_name": "local-dir:data/tiny_world/scorer"}}
    done = run(
        [
            *(sys.executable, "benchmarks/rewards.py", "--rewards", "clip", "compression"),
            *("--reward_kwargs", json.dumps(kwargs), "--images", "4", "--size", "64", "--rounds", "2"),
            *("--output", str(tmp_path / "rewards.json")),
        ]
    )
    lines = [line.split(":")[0].strip() for line in done.stdout.splitlines()[:3]]
    assert lines == ["clip", "compression", "all together"]
    results = json.loads((tmp_path / "rewards.json").read_text())
    alone, together = results["alone"], results["together"]
    assert all(cost["seconds"] > 0 for cost in [*alone.values(), together])
    assert 0.01 < alone["clip"]["gigabytes"] < 3  # it loads a model, the other does not
    assert alone["compression"]["gigabytes"] < alone["clip"]["gigabytes"]
    for key, ratio in results["together_over_sum"].items():
        assert ratio == pytest.approx(together[key] / sum(one[key] for one in alone.values()))


@pytest.mark.slow
def test_gpu(tmp_path):
    done = run([sys.executable, "benchmarks/gpu.py", "--small", "--output", str(tmp_path / "gpu.json")])
    assert "left out" not in done.stdout and "out of memory" not in done.stdout
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["small"] and results["matrix_tflops"] > 0
    parts, ways, step = results["parts"], results["ways"], results["steps"]["tiny"]
    assert parts["text encoders without T5"]["tflop"] < parts["text encoders, both prompts"]["tflop"]
    default, one_at_a_time, *others = ways.values()
    assert default["of_limit"] is None  # other pixels, other steps
    for way in others:
        rate = way["images_per_second"]
        assert way["over_default"] == pytest.approx(rate / default["images_per_second"])
        assert way["over_one_at_a_time"] == pytest.approx(rate / one_at_a_time["images_per_second"])
        assert 0 < way["of_limit"] < 2
    # The TFLOP of an image follow from its share of the limit: half the steps save half of the denoising
    work = {name: way["of_limit"] / way["images_per_second"] for name, way in ways.items() if way["of_limit"]}
    half = next(name for name in work if name.endswith(", half the steps"))
    saved = work[half.removesuffix(", half the steps")] - work[half]
    denoising = parts["denoiser, all steps, with guidance"]
    assert saved == pytest.approx(denoising["tflop"] * denoising["times"] / 2 / results["matrix_tflops"])
    assert step["images"] == 4 and step["train"] > 0
    assert step["write"] + step["train"] < step["step"] and step["render"] < step["step"]
