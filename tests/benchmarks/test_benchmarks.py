"""The benchmarks run as a user types them; the figures that they measure are not tested."""

import importlib
import json
import re
import sys
import time

import pytest
from conftest import REPOSITORY

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
def test_fidelity(tmp_path):
    """Of the same images the ranking is the same; fewer steps are faster; a cache that is not there is said."""
    same, fewer = {"guidance_scale": 3.0}, {"generator": "data/tiny_world/generator", "num_inference_steps": 1}
    done = run(
        [
            *(sys.executable, "benchmarks/fidelity.py", "--config", "recipes/tiny_cpu.yaml", "--prompts", "3"),
            *("--full", '{"num_inference_steps": 6, "guidance_scale": 3.0}'),
            *("--variants", *map(json.dumps, (same, fewer, {"cache": {"TaylorSeerCacheConfig": {}}}))),
            *("--output", str(tmp_path / "fidelity.json")),
        ]
    )
    assert '{"cache": {"TaylorSeerCacheConfig": {}}} | left out: cache: StableDiffusion3Pipeline has no' in done.stdout
    results = json.loads((tmp_path / "fidelity.json").read_text())["variants"]
    assert list(results) == ["another seed", json.dumps(same), json.dumps(fewer)]
    other_seed, same, fewer = results.values()
    assert same["rank"]["mean"] == pytest.approx(1) and same["turned"]["mean"] == 0
    assert fewer["images_per_second"] > 2 * same["images_per_second"]
    assert all(0 < result["turned"]["mean"] < 0.5 for result in (other_seed, fewer))
    for result in results.values():
        assert result["signal_per_second"] == pytest.approx(
            result["images_per_second"] * max(0, result["rank"]["mean"]) ** 2
        )


@pytest.mark.slow
def test_gpu(tmp_path):
    run([sys.executable, "benchmarks/gpu.py", "--small", "--output", str(tmp_path / "gpu.json")])
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["small"] and results["matrix_tflops"] > 0
    parts, step = results["parts"], results["steps"]["tiny"]
    assert parts["text encoders without T5"]["tflop"] < parts["text encoders, both prompts"]["tflop"]
    # What is not possible here says why, and the other rows are there
    left_out = {name: row["left_out"] for name, row in results["ways"].items() if "left_out" in row}
    needs_a_gpu = re.compile(r"compile_generator|cuDNN|FlashAttention 3")
    assert all(reason and needs_a_gpu.search(name) for name, reason in left_out.items())
    default, one_at_a_time, *others = ways = [row for row in results["ways"].values() if "left_out" not in row]
    assert len(ways) >= 16 and default["of_limit"] is None  # other pixels, other steps
    for way in others:
        rate = way["images_per_second"]
        assert way["over_default"] == pytest.approx(rate / default["images_per_second"])
        assert way["over_one_at_a_time"] == pytest.approx(rate / one_at_a_time["images_per_second"])
        assert way["of_limit"] is None or 0 < way["of_limit"] < 2
    # The TFLOP of an image follow from its share of the limit: half the steps save half of the denoising
    work = {
        name: row["of_limit"] / row["images_per_second"]
        for name, row in results["ways"].items()
        if row.get("of_limit")
    }
    half = next(name for name in work if name.endswith(", half the steps"))
    saved = work[half.removesuffix(", half the steps")] - work[half]
    denoising = parts["denoiser, all steps, with guidance"]
    assert saved == pytest.approx(denoising["tflop"] * denoising["times"] / 2 / results["matrix_tflops"])
    # Fewer denoising steps change the images, another layout in memory only rounds
    differs = {name.split(", ", 1)[-1]: row["differs"] for name, row in results["ways"].items() if "differs" in row}
    assert differs["MagCache"] > 0.1 and differs["no guidance"] > 1
    assert max(differs[name] for name in ("vae_slicing", "channels_last decoder", "FlashAttention")) < 0.1
    assert step["images"] == 4 and step["train"] > 0
    assert step["write"] + step["train"] < step["step"] and step["render"] < step["step"]
    before = results["sums"]["before"]
    assert before["step"] == pytest.approx(sum(before[part] for part in ("write", "render", "score", "train")))


def test_a_row_of_gpu_that_fails_or_takes_too_long_is_left_out_with_the_reason(monkeypatch, capsys):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")  # Python puts the folder of a script that it starts there
    clock = importlib.import_module("gpu_models").Clock("cpu")
    soon = time.perf_counter() - clock.began + 0.2

    def fail():
        raise ValueError("no such kernel\n(and a long list)")

    def wait():
        try:
            time.sleep(10)
        except Exception:  # as compilers do: it must not stop the alarm
            time.sleep(10)

    assert clock.attempt("slow", wait, until=soon)["left_out"].startswith("not done in the 0 s")
    assert clock.attempt("late", fail, until=0) == {"left_out": "the time is over"}
    later = soon + 60
    assert clock.attempt("broken", fail, until=later) == {"left_out": "ValueError: no such kernel"}
    assert clock.attempt("good", lambda: {"seconds": 1.0}, until=later) == {"seconds": 1.0}
    assert [line.split(":")[0].strip() for line in capsys.readouterr().out.splitlines()] == ["slow", "late", "broken"]
