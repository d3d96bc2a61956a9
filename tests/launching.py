"""Launching the recipe as users do, with each accelerate config, on two CPU processes where it is for several GPUs."""

import os
import re
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY


ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
# torchrun's ranks would each take all cores; `nice` figures are not wanted here, only that both go on.
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TWO_CPU_RANKS = ("--use_cpu", "true", "--ddp_backend", "gloo")


def on_two_cpus(name: str, folder: Path) -> str:
    """A copy of accelerate_configs/<name>.yaml that differs in the machine only: two processes, on the CPU."""
    text = (REPOSITORY / "accelerate_configs" / f"{name}.yaml").read_text()
    text, cpu = re.subn("use_cpu: false", "use_cpu: true", text)
    text, processes = re.subn("num_processes: 8", "num_processes: 2", text)
    assert cpu == processes == 1
    (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{name}.yaml")


def recipe(*flags: str, config: str = "accelerate_configs/cpu.yaml", program: str = "recipes/grpo.py") -> list[str]:
    """The launch command, with recipes/tiny_cpu.yaml unless the flags name another."""
    yaml = () if "--config" in flags else ("--config", "recipes/tiny_cpu.yaml")
    return [*ACCELERATE, config, program, *yaml, *flags]


def run(command: list[str], timeout: int = 240) -> subprocess.CompletedProcess:
    done = subprocess.run(command, cwd=REPOSITORY, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done
