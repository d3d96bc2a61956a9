"""The worker of a run: in this process, a service at an address, or a service that the run starts itself."""

import atexit
import dataclasses
import importlib.util
import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from brushup.config import RenderConfig
from brushup.render.job import Worker
from brushup.render.service.client import connect
from brushup.render.worker import load_worker
from brushup.rewards.registry import RewardSpec


logger = logging.getLogger(__name__)
SERVE = Path(__file__).parents[3] / "recipes" / "serve.py"
START_TIMEOUT = 900  # seconds: a big generator may have to be downloaded
RESTART_AFTER = 2  # seconds after a service died: what is left of it gives its port and its memory back


def get_worker(
    render: RenderConfig,
    rewards: Sequence[RewardSpec],
    output_dir: Path,
    ddp_timeout: int,
    serve_command: str = "python recipes/serve.py --config ...",
) -> Worker:
    """Return the worker that the setting `worker` names; all ranks call it together.

    Args:
        render: the settings of the generator.
        rewards: the image rewards among them are loaded.
        output_dir: where a service that the run starts writes its log.
        ddp_timeout: seconds that ranks wait for each other.
        serve_command: starts a service for this run, without its port; for the error message.

    Raises:
        ValueError: `worker` is none of the four, the deadlines do not nest, something else answers at the address,
            or a service was started with other settings.
        RuntimeError: the service could not be started; the message has the end of its log.
        WorkerUnavailable: nothing answers at the address.
    """
    gpus = spare_gpus()
    if render.worker == "local" or (render.worker == "auto" and not gpus):
        return load_worker(render, rewards)
    if render.worker_timeout >= ddp_timeout:
        raise ValueError(
            f"deadlines must nest: worker_timeout ({render.worker_timeout:g} s, all images of a training batch) < "
            f"ddp_timeout ({ddp_timeout} s, ranks waiting for each other). Change the one that is out of order"
        )
    url = render.worker
    if render.worker in ("auto", "spawn"):
        url = start_on_each_machine(render, rewards, output_dir, gpus if render.worker == "auto" else [])
    return connect(url, render, rewards, serve_command)


def spare_gpus() -> list[str]:
    """Return the GPUs of this machine that no training process uses, as in CUDA_VISIBLE_DEVICES."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else [str(index) for index in range(torch.cuda.device_count())]
    return names[int(os.environ.get("LOCAL_WORLD_SIZE", "1")) :]


def start_on_each_machine(
    render: RenderConfig, rewards: Sequence[RewardSpec], output_dir: Path, gpus: list[str]
) -> str:
    """Return the address of the service that the first rank of this machine starts.

    Raises:
        RuntimeError: on all ranks alike, if a machine could not start its service.
    """
    state = PartialState()
    url, error = "", None
    if state.is_local_main_process:
        try:
            url = start_service(render, rewards, output_dir, gpus)
        except RuntimeError as failure:
            error = str(failure)
    outcomes = gather_object([(url, error)])
    if errors := [error for _, error in outcomes if error]:
        raise RuntimeError(errors[0])
    return outcomes[state.process_index - state.local_process_index][0]


def start_service(render: RenderConfig, rewards: Sequence[RewardSpec], output_dir: Path, gpus: list[str]) -> str:
    """Start recipes/serve.py as a child, and return its address once its models are loaded.

    It has a replica for each GPU, or one on the CPU. It ends with this process, also when that is killed: Linux tells
    it (see recipes/serve.py). If it dies alone, it is started again, at its port.

    Raises:
        RuntimeError: it ended, or took too long; the message has the end of its log.
    """
    if not importlib.util.find_spec("ray"):
        raise RuntimeError(f'worker: {render.worker} needs Ray Serve: pip install -e ".[serve]"')
    output_dir.mkdir(parents=True, exist_ok=True)
    image_rewards = [spec for spec in rewards if spec.looks_at_images]
    settings = dataclasses.asdict(render) | {
        "reward_funcs": [spec.source for spec in image_rewards],
        "reward_kwargs": {spec.source: spec.kwargs for spec in image_rewards},
    }
    name = f"worker-{socket.gethostname()}"  # machines may share the folder
    config, log = output_dir / f"{name}.yaml", output_dir / f"{name}.log"
    config.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}, indent=1))
    command = [sys.executable, str(SERVE), "--config", str(config), "--num_replicas", str(len(gpus) or 1), "--port"]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "BRUSHUP_PARENT": str(os.getpid())}
    log.write_text("")
    service = OwnService(command, environment, log)
    atexit.register(service.end)
    deadline = time.monotonic() + START_TIMEOUT
    while service.child.poll() is None and time.monotonic() < deadline:
        if ready := re.search(r"^ready: --worker (\S+)$", log.read_text(), re.MULTILINE):
            threading.Thread(target=service.keep_up, args=[ready[1]], name="render service", daemon=True).start()
            return ready[1]
        time.sleep(0.2)
    service.end()
    tail = "\n".join(log.read_text().splitlines()[-30:])
    raise RuntimeError(f"the render service did not start; the end of {log}:\n{tail}")


class OwnService:
    """A render service as a child of this process.

    Args:
        command: starts it, without its port, which comes last.
        environment: of the child.
        log: gets the child's output.
    """

    def __init__(self, command: list[str], environment: dict[str, str], log: Path):
        self.command, self.environment, self.log = command, environment, log
        self.ended = threading.Event()
        self.start(0)

    def start(self, port: int) -> None:
        """Start the child at this port; 0: any that is free."""
        with self.log.open("a") as file:  # a new session: Ctrl-C must not end it before the training step is done
            self.child = subprocess.Popen(
                [*self.command, str(port)], stdout=file, stderr=file, env=self.environment, start_new_session=True
            )

    def keep_up(self, url: str) -> None:
        """Start the child again at the port of this address whenever it dies, until `end`; it never returns before.

        Linux ends the child with the thread that started it, so this thread must not end before the process does.
        """
        port = httpx.URL(url).port
        while True:
            code = self.child.wait()
            if self.ended.wait(RESTART_AFTER):
                return
            logger.warning("the render service %s ended (code %d): starting it again; log: %s", url, code, self.log)
            self.start(port)

    def end(self) -> None:
        """End the child, by force if it does not end within 15 s."""
        self.ended.set()
        self.child.terminate()
        try:
            self.child.wait(timeout=15)
        except subprocess.TimeoutExpired:
            self.child.kill()
