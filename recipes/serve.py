"""Serves the generator and the image rewards of a run over HTTP, for training elsewhere to render with.

With the YAML file of the run, on the machine with the GPUs that shall render (pip install -e ".[serve]"):

    python recipes/serve.py --config recipes/tiny_cpu.yaml --port 8100
    accelerate launch ... recipes/grpo.py --config recipes/tiny_cpu.yaml --worker http://127.0.0.1:8100

`--num_replicas 7` renders on seven GPUs; `--ray_address auto` joins a Ray cluster of many machines. Training on
another machine needs `--host 0.0.0.0` and the same BRUSHUP_TOKEN on both.
"""

from brushup.flags import answer_at_once, parse


if __name__ == "__main__":  # before the imports below, which take ten seconds
    answer_at_once(__doc__, "RenderConfig", "RewardConfig", "ServeConfig")

import functools
import ipaddress
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile

import torch

from brushup.common import end_with_parent
from brushup.config import RenderConfig, RewardConfig
from brushup.console import quiet_libraries
from brushup.recipe_config import ServeConfig
from brushup.render.service.address import check_token
from brushup.render.service.protocol import settings_of
from brushup.render.worker import load_worker
from brushup.rewards.registry import parse_rewards


ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def check_access(host: str, token: str | None) -> None:
    """End the program unless only this machine can reach `host`, or clients must know a secret."""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        sys.exit(f"host: {host!r} is no IP address. 127.0.0.1 is for this machine alone, 0.0.0.0 for every network")
    if not loopback and not token:
        sys.exit(
            f"host: {host} can be reached by others. Set BRUSHUP_TOKEN to a long secret, here and where you "
            "train, e.g. export BRUSHUP_TOKEN=$(openssl rand -hex 32)"
        )
    try:
        check_token(token)
    except ValueError as error:
        sys.exit(str(error))


def keep_ray_to_itself() -> None:
    """Make Ray listen on this machine only, and ask for a secret: whoever can talk to Ray can run code.

    Ray reads these variables when it is imported. The first is for Windows and macOS, where Ray listens on 127.0.0.1;
    with it, it does so on Linux. Replicas of Ray Serve have a port on all addresses all the same: hence the secret.
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

    from brushup.render.service.server import make_application

    specs = parse_rewards(rewards)
    gpus = 1 if torch.cuda.device_count() else 0  # of each replica
    cpus = 0 if gpus else max(1, (os.cpu_count() or 1) // service.num_replicas)  # also its number of threads
    port = service.port or free_port(service.host)
    settings = settings_of(render, specs)

    if "BRUSHUP_PARENT" in os.environ:
        end_with(int(os.environ["BRUSHUP_PARENT"]))
    # For Ray's logs and sockets; Ray opens its own folder to all accounts, but not this one around it. Not in TMPDIR:
    # the path of a socket has at most 107 bytes.
    folder = tempfile.mkdtemp(prefix="brushup-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
    cluster = {"address": "local", "num_cpus": max(service.num_replicas * cpus, 1), "_temp_dir": f"{folder}/ray"}
    try:
        ray.init(include_dashboard=False, **({"address": service.ray_address} if service.ray_address else cluster))
        end_on_signals()
        quiet = {"enable_access_log": False}
        serve.start("HeadOnly", {"host": service.host, "port": port}, logging_config=quiet)
        serve.run(
            make_application(
                functools.partial(load_worker, render, specs),
                settings,
                rewards=settings["reward_funcs"],
                render_timeout=render.render_timeout,
                batch_size=render.batch_size,
                num_replicas=service.num_replicas,
                actor_options={"num_cpus": cpus, "num_gpus": gpus},
                token=token,
            ),
            name="brushup",
            logging_config=quiet,
        )
        host = f"[{service.host}]" if ":" in service.host else service.host
        print(f"ready: --worker http://{host}:{port}", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        pass  # a signal, see below
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)  # it is ending
        if service.ray_address:  # else all of the cluster ends here
            serve.shutdown()
        ray.shutdown()  # prints the last of its replicas' logs
        shutil.rmtree(folder, ignore_errors=True)
    print("stopped", flush=True)


def end_on_signals() -> None:
    """Let SIGTERM and a closed terminal end the program as Ctrl-C does, unless nohup ignores the latter.

    To be called after `ray.init`: Ray's own handler kills the cluster below Python, which then aborts.
    """
    for number in ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)


def end_with(parent: int) -> None:
    """End this process when the training process that started it is gone, however that ended."""
    end_with_parent()
    if os.getppid() != parent:  # it was gone before
        sys.exit("the training process is gone")


def free_port(host: str) -> int:
    """Return a port of this host that nothing listens on."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    quiet_libraries()
    main(*parse(RenderConfig, RewardConfig, ServeConfig))
