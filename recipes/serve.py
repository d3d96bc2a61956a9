"""Serves the generator and the image rewards of a run over HTTP, for training elsewhere to draw with.

With the YAML file of the run, on the machine with the GPUs that shall draw (pip install -e ".[serve]"):

    python recipes/serve.py --config recipes/tiny_cpu.yaml --port 8100
    accelerate launch ... recipes/grpo.py --config recipes/tiny_cpu.yaml --worker http://127.0.0.1:8100

`--num_replicas 7` draws on seven GPUs, `--gpus_per_replica 0.5` puts two replicas on each; `--ray_address auto` joins
a Ray cluster of many machines. Training on another machine needs `--host 0.0.0.0` and the same BRUSHUP_TOKEN on both.
"""

import ctypes
import functools
import ipaddress
import os
import signal
import socket
import sys

import ray
import torch
from ray import serve
from trl import TrlParser

from brushup.config import RenderConfig, RewardConfig, ServeConfig
from brushup.console import quiet_libraries
from brushup.protocol import settings_of
from brushup.service import make_application
from brushup.worker import load_worker


def is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


def main(render: RenderConfig, rewards: RewardConfig, service: ServeConfig) -> None:
    token = os.environ.get("BRUSHUP_TOKEN")
    if not is_loopback(service.host) and not token:
        sys.exit(
            f"host: {service.host} can be reached by others. Set BRUSHUP_TOKEN to a long secret, here and where you "
            "train, e.g. export BRUSHUP_TOKEN=$(openssl rand -hex 32)"
        )
    gpus = torch.cuda.device_count() and 1 if service.gpus_per_replica is None else service.gpus_per_replica
    cpus = 0 if gpus else max(1, (os.cpu_count() or 1) // service.num_replicas)  # also its number of threads
    port = service.port or free_port(service.host)
    settings = settings_of(render, rewards)

    if "BRUSHUP_PARENT" in os.environ:
        end_with(int(os.environ["BRUSHUP_PARENT"]))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the end, below
    # A cluster of its own listens on this machine only.
    own = {"_node_ip_address": "127.0.0.1", "num_cpus": max(service.num_replicas * cpus, 1)}
    try:
        ray.init(address=service.ray_address, include_dashboard=False, **({} if service.ray_address else own))
        serve.start(http_options={"host": service.host, "port": port})
        serve.run(
            make_application(
                functools.partial(load_worker, render, rewards),
                settings,
                rewards=settings["reward_funcs"],
                render_timeout=render.render_timeout,
                batch_size=render.render_batch_size,
                num_replicas=service.num_replicas,
                actor_options={"num_cpus": cpus, "num_gpus": gpus},
                token=token,
            ),
            name="brushup",
        )
        print(f"ready: --worker http://{service.host}:{port}", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print("stopped", flush=True)
    finally:
        if service.ray_address:  # else all of the cluster ends here
            serve.shutdown()
        ray.shutdown()


def end_with(parent: int) -> None:
    """Linux ends this process (SIGTERM) when the training process that started it is gone, however that ended."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:  # it was gone before
        sys.exit("the training process is gone")


def free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    quiet_libraries()
    parser = TrlParser((RenderConfig, RewardConfig, ServeConfig))
    # The YAML file also has what only training reads; a flag that nobody knows is an error.
    *configs, _, unknown = parser.parse_args_and_config(return_remaining_strings=True, separate_remaining_strings=True)
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    main(*configs)
