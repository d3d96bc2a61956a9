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
import re
import secrets
import signal
import socket
import sys

import torch
from trl import TrlParser

from brushup.config import RenderConfig, RewardConfig, ServeConfig
from brushup.console import quiet_libraries
from brushup.protocol import settings_of
from brushup.worker import load_worker


def check_access(host: str, token: str | None) -> None:
    """Ends the program unless `host` is reached from this machine only, or there is a secret to know."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        sys.exit(f"host: {host!r} is no IP address. 127.0.0.1 is for this machine alone, 0.0.0.0 for every network")
    if not loopback and not token:
        sys.exit(
            f"host: {host} can be reached by others. Set BRUSHUP_TOKEN to a long secret, here and where you "
            "train, e.g. export BRUSHUP_TOKEN=$(openssl rand -hex 32)"
        )
    if token and not re.fullmatch("[!-~]+", token):
        sys.exit("BRUSHUP_TOKEN has a space or a character that is not ASCII: an HTTP header can't hold it")


def keep_ray_to_itself() -> None:
    """Who can talk to Ray can run code: a cluster of its own listens on this machine only, and wants a secret.

    Ray reads these when it is imported. The first is made for Windows and macOS, where Ray listens on 127.0.0.1; so it
    does with it on Linux. Replicas of Ray Serve have one port on all addresses all the same: hence the secret.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


def main(render: RenderConfig, rewards: RewardConfig, service: ServeConfig) -> None:
    token = os.environ.get("BRUSHUP_TOKEN")
    check_access(service.host, token)
    if not service.ray_address:
        keep_ray_to_itself()
    import ray
    from ray import serve

    from brushup.service import make_application

    gpus = torch.cuda.device_count() and 1 if service.gpus_per_replica is None else service.gpus_per_replica
    cpus = 0 if gpus else max(1, (os.cpu_count() or 1) // service.num_replicas)  # also its number of threads
    # With auto, a replica gets so many jobs at once, and finds out how many of them to draw at once.
    batch_size = 32 if render.render_batch_size == "auto" else render.render_batch_size
    port = service.port or free_port(service.host)
    settings = settings_of(render, rewards)

    if "BRUSHUP_PARENT" in os.environ:
        end_with(int(os.environ["BRUSHUP_PARENT"]))
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the end, below
    own = {"address": "local", "num_cpus": max(service.num_replicas * cpus, 1)}  # also if another cluster runs here
    try:
        ray.init(include_dashboard=False, **({"address": service.ray_address} if service.ray_address else own))
        serve.start(proxy_location="HeadOnly", http_options={"host": service.host, "port": port})
        serve.run(
            make_application(
                functools.partial(load_worker, render, rewards),
                settings,
                rewards=settings["reward_funcs"],
                render_timeout=render.render_timeout,
                batch_size=batch_size,
                num_replicas=service.num_replicas,
                actor_options={"num_cpus": cpus, "num_gpus": gpus},
                token=token,
            ),
            name="brushup",
        )
        host = f"[{service.host}]" if ":" in service.host else service.host
        print(f"ready: --worker http://{host}:{port}", flush=True)
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
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
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
