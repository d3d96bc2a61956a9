"""Launching recipes: as users do with `accelerate launch`, or in processes forked from a warm one, which is faster.

`recipe`, `on_two_cpus` and `program` make commands; `run` and `start` run them forked, and really with `real=True`.
"""

import atexit
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import prepare_deepspeed_cmd_env, prepare_multi_gpu_env, prepare_simple_launcher_cmd_env
from conftest import REPOSITORY


ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file"]
RECIPE = ("recipes/grpo.py", "--config", "recipes/tiny_cpu.yaml")
TWO_CPU_RANKS = ("--use_cpu", "true", "--ddp_backend", "gloo")
TOKEN = "Sesame-of-the-tests"  # of services, which all programs know
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "BRUSHUP_TOKEN": TOKEN}  # 1: else each rank would take all cores
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
    """Return the launch command on one CPU process, with recipes/tiny_cpu.yaml."""
    return [*ACCELERATE, "accelerate_configs/cpu.yaml", *RECIPE, *flags]


def on_two_cpus(name: str, folder: Path, *program: str) -> list[str]:
    """Return the launch command of a program under accelerate_configs/<name>.yaml, with two CPU processes."""
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
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(log: Path, pattern: str, process: "Process | None" = None, timeout: float = 150) -> re.Match:
    """Return the match of the pattern in the log once it is there; fail if the process ends before."""
    give_up = time.monotonic() + timeout
    while not (found := re.search(pattern, log.read_text() if log.is_file() else "", re.MULTILINE)):
        assert time.monotonic() < give_up and (process is None or process.poll() is None), log.read_text()[-3000:]
        time.sleep(0.05)
    return found


class Warm:
    """The warm process (see warm.py), one for the session."""

    def __init__(self):
        command = [sys.executable, str(Path(__file__).with_name("warm.py"))]
        environment = ENVIRONMENT | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            cwd=REPOSITORY,
        )
        self._lock = threading.Lock()
        atexit.register(self.process.kill)
        while (line := self.process.stdout.readline()) != "ready\n":
            assert line, "the warm process did not start: run tests/support/warm.py by hand"

    def ask(self, request: dict) -> int | None:
        """Return the answer to a request."""
        with self._lock:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())


warm = functools.cache(Warm)


class Process:
    """Forked ranks of one program, with the interface of `subprocess.Popen` as far as tests need it."""

    def __init__(self, argv: list[str], environments: list[dict[str, str]], stdout: Path, stderr: Path, cwd: Path):
        files = {"stdout": str(stdout), "stderr": str(stderr), "cwd": str(cwd)}
        self.pids = [warm().ask({"start": {"argv": argv, "env": env, **files}}) for env in environments]
        self.pid = self.pids[0]
        self._end_by = float("inf")

    def poll(self) -> int | None:
        """Return the exit code once all ranks ended; one that fails ends the others, as torchrun does."""
        codes = [warm().ask({"poll": pid}) for pid in self.pids]
        if any(codes) and None in codes:
            self._end_by = min(self._end_by, time.monotonic() + 5)  # the others may be about to say the same
            if time.monotonic() > self._end_by:
                self.send_signal(signal.SIGKILL)
        return None if None in codes else next(filter(None, codes), 0)

    def send_signal(self, number: int) -> None:
        """Send the signal to each rank, and to its children."""
        for pid in self.pids:
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                continue

    def wait(self, timeout: float = 240) -> int:
        """Return the exit code; end all ranks, and raise `subprocess.TimeoutExpired`, if they take too long."""
        give_up = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > give_up:
                self.send_signal(signal.SIGKILL)
                raise subprocess.TimeoutExpired(str(self.pids), timeout)
            time.sleep(0.02)
        return code


def forked(
    command: list[str], stdout: Path, stderr: Path, cwd: Path = REPOSITORY, variables: dict[str, str] | None = None
) -> Process:
    """Start a command of `recipe`, `on_two_cpus` or `[sys.executable, file, ...]` in forked processes."""
    environment = ENVIRONMENT | (variables or {})
    if command[: len(ACCELERATE)] != ACCELERATE:
        assert command[0] == sys.executable, command
        return Process(command[1:], [environment], stdout, stderr, cwd)
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(command[len(ACCELERATE) - 1 :]))
    argv = [args.training_script, *args.training_script_args]
    if args.num_processes == 1:
        return Process(argv, [prepare_simple_launcher_cmd_env(args)[1] | environment], stdout, stderr, cwd)
    prepare = (lambda args: prepare_deepspeed_cmd_env(args)[1]) if args.use_deepspeed else prepare_multi_gpu_env
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""
    shared = prepare(args) | environment | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    sizes = {"WORLD_SIZE": str(args.num_processes), "LOCAL_WORLD_SIZE": str(args.num_processes)}
    ranks = [sizes | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(args.num_processes)]
    return Process(argv, [shared | rank for rank in ranks], stdout, stderr, cwd)


def start(command: list[str], log: Path, real: bool = False, cwd: Path = REPOSITORY) -> Process | subprocess.Popen:
    """Start the command, forked or as it is typed, with its output in the log."""
    log.write_text("")
    if not real:
        return forked(command, log, log, cwd)
    with log.open("a") as file:
        return subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, stdout=file, stderr=file, start_new_session=True)


def finished(
    command: list[str],
    timeout: int = 240,
    real: bool = False,
    cwd: Path = REPOSITORY,
    variables: dict[str, str] | None = None,
) -> subprocess.CompletedProcess:
    """Return the outcome of the command, run forked or as it is typed; `variables` are added to the environment."""
    if real:
        environment = ENVIRONMENT | (variables or {})
        return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout)
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        code = forked(command, stdout, stderr, cwd, variables).wait(timeout)
        return subprocess.CompletedProcess(command, code, stdout.read_text(), stderr.read_text())


def run(command: list[str], **options) -> subprocess.CompletedProcess:
    """Return the outcome of the command, which must succeed; the options are those of `finished`."""
    done = finished(command, **options)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done
