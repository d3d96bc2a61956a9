"""Launching the recipe as users do, with each accelerate config, on two CPU processes where it is for several GPUs."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY


ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
RECIPE = ("recipes/grpo.py", "--config", "recipes/tiny_cpu.yaml")
TWO_CPU_RANKS = ("--use_cpu", "true", "--ddp_backend", "gloo")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}  # else each of two ranks would take all cores
SHARDED = ("multi_gpu", "deepspeed_zero2", "deepspeed_zero3", "fsdp2")

# accelerate shards with FSDP on GPUs only. Told that the two CPU processes are such, it does so here too.
PRETEND_GPUS = """
import runpy, sys
from accelerate import PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

init = AcceleratorState.__init__

def pretend(self, *args, **kwargs):
    if not AcceleratorState._shared_state:
        PartialState(kwargs.get("cpu"))
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    init(self, *args, **kwargs)

AcceleratorState.__init__ = pretend
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def recipe(*flags: str) -> list[str]:
    """The launch command on one CPU process, with recipes/tiny_cpu.yaml."""
    return [*ACCELERATE, "accelerate_configs/cpu.yaml", *RECIPE, *flags]


def on_two_cpus(name: str, folder: Path, *program: str) -> list[str]:
    """Launches `program` under accelerate_configs/<name>.yaml, with two CPU processes instead of eight GPUs."""
    text = (REPOSITORY / "accelerate_configs" / f"{name}.yaml").read_text()
    text, cpu = re.subn("use_cpu: false", "use_cpu: true", text)
    text, processes = re.subn("num_processes: 8", "num_processes: 2", text)
    assert cpu == processes == 1
    (folder / f"{name}.yaml").write_text(text)
    if name == "fsdp2":
        (folder / "pretend_gpus.py").write_text(PRETEND_GPUS)
        program = (str(folder / "pretend_gpus.py"), *program)
    return [*ACCELERATE, str(folder / f"{name}.yaml"), *program]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(command: list[str], timeout: int = 240) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done
