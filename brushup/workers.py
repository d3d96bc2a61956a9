"""Which worker a run draws with: in this process, a service at an address, or a service that it starts itself."""

import atexit
import dataclasses
import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from brushup.client import HttpWorker, check_deadlines, connect
from brushup.config import EvaluationConfig, PromptEnhancerConfig, RenderConfig
from brushup.worker import LocalWorker, load_worker


SERVE = Path(__file__).parent.parent / "recipes" / "serve.py"
START_TIMEOUT = 900  # seconds: a big generator may have to be downloaded


def get_worker(render: RenderConfig, args: PromptEnhancerConfig | EvaluationConfig) -> LocalWorker | HttpWorker:
    """The worker that the setting `worker` names; all ranks call it together.

    Raises:
        ValueError: `worker` is none of the four, the deadlines do not nest, or a service was started with other
            settings.
        RuntimeError: the service could not be started; the message has the end of its log.
        WorkerUnavailable: nothing answers at the address.
    """
    if render.worker not in ("local", "auto", "spawn") and not re.match(r"https?://", render.worker):
        raise ValueError(f"worker: {render.worker!r} is none of local, auto, spawn and http://host:port")
    gpus = spare_gpus()
    if render.worker == "local" or (render.worker == "auto" and not gpus):
        return load_worker(render, args)
    check_deadlines(render, args.ddp_timeout)
    url = render.worker
    if render.worker in ("auto", "spawn"):
        url = start_on_each_machine(render, args, gpus if render.worker == "auto" else [])
    return connect(url, render, args)


def spare_gpus() -> list[str]:
    """The GPUs of this machine that no training process uses, as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    return names[int(os.environ.get("LOCAL_WORLD_SIZE", "1")) :]


def start_on_each_machine(render: RenderConfig, args: PromptEnhancerConfig, gpus: list[str]) -> str:
    """The address of the service that the first rank of this machine starts."""
    state = PartialState()
    try:
        answer = start_service(render, args, gpus) if state.is_local_main_process else ""
    except RuntimeError as error:
        answer = f"error: {error}"  # raised on all ranks alike, below
    answers = gather_object([answer])
    for each in answers:
        if each.startswith("error: "):
            raise RuntimeError(each.removeprefix("error: "))
    return answers[state.process_index - state.local_process_index]


def start_service(render: RenderConfig, args: PromptEnhancerConfig, gpus: list[str]) -> str:
    """Starts recipes/serve.py as a child, a replica a GPU (or one on the CPU), and waits until its models are loaded.

    It ends with this process, also when that is killed: Linux tells it (see recipes/serve.py).

    Returns:
        Its address.

    Raises:
        RuntimeError: it ended, or took too long; the message has the end of its log.
    """
    if not importlib.util.find_spec("ray"):
        raise RuntimeError(f'worker: {render.worker} needs Ray Serve: pip install -e ".[serve]"')
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    settings = dataclasses.asdict(render) | {"reward_funcs": args.reward_funcs, "reward_kwargs": args.reward_kwargs}
    name = f"worker-{socket.gethostname()}"  # each machine has its own
    config, log = output / f"{name}.yaml", output / f"{name}.log"
    config.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}, indent=1))
    command = [sys.executable, str(SERVE), "--config", str(config), "--port", "0"]
    command += ["--num_replicas", str(len(gpus) or 1), "--gpus_per_replica", "1" if gpus else "0"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "BRUSHUP_PARENT": str(os.getpid())}
    with log.open("w") as file:  # a session of its own: Ctrl-C must not end it before the training step is done
        child = subprocess.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    atexit.register(end, child)
    deadline = time.monotonic() + START_TIMEOUT
    while child.poll() is None and time.monotonic() < deadline:
        if ready := re.search(r"^ready: --worker (\S+)$", log.read_text(), re.MULTILINE):
            return ready[1]
        time.sleep(0.2)
    end(child)
    tail = "\n".join(log.read_text().splitlines()[-30:])
    raise RuntimeError(f"the render service did not start; the end of {log}:\n{tail}")


def end(child: subprocess.Popen) -> None:
    child.terminate()
    try:
        child.wait(timeout=15)
    except subprocess.TimeoutExpired:
        child.kill()
