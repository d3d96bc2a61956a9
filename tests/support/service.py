"""recipes/serve.py as a process of a test."""

import signal
import sys
from pathlib import Path

import psutil

from support.launching import RECIPE, free_port, start, wait_for


NAME = "ServeReplica:brushup:Replica"  # of Ray Serve


class Service:
    """A render service on the CPU. It starts while tests do something else: who asks for its `url` waits for it."""

    def __init__(self, folder: Path, *flags: str):
        self.log = folder / "service.log"
        self.port = free_port()
        self.flags = flags
        self.start()

    def start(self) -> None:
        """Start it, or start it again, at its port."""
        command = [sys.executable, "recipes/serve.py", "--config", RECIPE[2], "--port", str(self.port), *self.flags]
        self.process = start(command, self.log)

    @property
    def url(self) -> str:
        """Its address, once its models are loaded."""
        wait_for(self.log, "ready: --worker", self.process)
        return f"http://127.0.0.1:{self.port}"

    def processes(self) -> list[psutil.Process]:
        """Return all its processes."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def replicas(self) -> list[psutil.Process]:
        """Return the processes of its replicas."""
        return [process for process in self.processes() if NAME in " ".join(process.cmdline())]

    def kill(self) -> None:
        """Kill all of it at once, as when its machine goes down."""
        for process in self.processes():
            process.kill()
        self.process.wait()

    def end(self, number: int = signal.SIGTERM) -> int:
        """End it with this signal, if it runs, and return its exit code."""
        if self.process.poll() is None:
            psutil.Process(self.process.pid).send_signal(number)
        return self.process.wait(timeout=60)
