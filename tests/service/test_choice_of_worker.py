"""Which worker a run draws with."""

import psutil
import pytest
import torch
from conftest import RENDER_KWARGS, TINY_WORLD, WITHOUT_T5

from brushup.config import RenderConfig
from brushup.render.service.launch import get_worker, spare_gpus
from brushup.render.worker import LocalWorker
from brushup.rewards.registry import RewardSpec


def settings(tmp_path, worker: str, generator: str = str(TINY_WORLD / "generator"), **options):
    render = RenderConfig(
        generator=generator,
        generator_init_kwargs=WITHOUT_T5,
        render_kwargs=RENDER_KWARGS,
        render_device="cpu",
        worker=worker,
        **options,
    )
    clip = RewardSpec("clip", kwargs={"model_name": f"local-dir:{TINY_WORLD / 'scorer'}"})
    return render, [clip], tmp_path, 1800


@pytest.mark.parametrize(
    ("visible", "there", "training", "spare"),
    [
        (None, 8, 6, ["6", "7"]),
        (None, 8, 8, []),
        (None, 0, 1, []),
        ("3,5,7", 3, 2, ["7"]),
        ("GPU-1a,GPU-2b", 2, 1, ["GPU-2b"]),
    ],
)
def test_gpus_beyond_the_training_processes_are_spare(visible, there, training, spare, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(training))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert spare_gpus() == spare


@pytest.mark.parametrize("worker", ["local", "auto"])
def test_with_no_gpu_to_spare_this_process_draws(worker, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert isinstance(get_worker(*settings(tmp_path, worker)), LocalWorker)


def test_a_worker_that_is_none(tmp_path):
    with pytest.raises(ValueError, match="worker: 'remote' is none of local, auto, spawn and http://host:port"):
        get_worker(*settings(tmp_path, "remote"))


def test_deadlines_are_checked_before_a_service_is_started(tmp_path):
    with pytest.raises(ValueError, match=r"deadlines must nest: worker_timeout \(1800 s, .*ddp_timeout \(1800 s"):
        get_worker(*settings(tmp_path, "spawn", worker_timeout=1800))
    assert not list(tmp_path.iterdir())


def test_a_service_that_does_not_start_shows_its_log(tmp_path, monkeypatch):
    program = tmp_path / "serve.py"
    program.write_text("print('loading the models'); raise OSError('there is no model at nowhere')")
    monkeypatch.setattr("brushup.render.service.launch.SERVE", program)
    with pytest.raises(RuntimeError, match=r"(?s)the render service did not start; the end of .*\.log:.*at nowhere"):
        get_worker(*settings(tmp_path, "spawn"))
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(p.info["cmdline"] or [])]
