"""The READMEs' commands and snippets, and the first command as a run that tests share."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY

from support.launching import ACCELERATE, start


README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
KOREAN = (REPOSITORY / "README.ko.md").read_text(encoding="utf-8")
PROGRAMS = ("accelerate", "pip", "python")


def commands(text: str) -> list[str]:
    """Return the indented lines that begin with a program."""
    return [line.strip() for line in re.findall(r"^    (.+)$", text, re.MULTILINE) if line.split()[0] in PROGRAMS]


def snippets(text: str) -> list[str]:
    """Return the blocks of Python."""
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def find(part: str) -> str:
    """Return the one command that has `part`, without what it installs."""
    (found,) = [command for command in commands(README) if part in command]
    return found.split(" && ")[-1]


def typed(command: str) -> list[str]:
    """Return the command's words, with this environment's accelerate or Python."""
    program, *words = shlex.split(command)
    if program == "accelerate":
        return [*ACCELERATE[:-1], *words[1:]]
    assert program == "python", command
    return [sys.executable, *words]


class FirstCommand:
    """The first command, in a folder with what a clone has: it takes minutes, on one core."""

    def __init__(self, folder: Path):
        for name in ("accelerate_configs", "data", "recipes", "README.md"):
            (folder / name).symlink_to(REPOSITORY / name)
        self.clone = folder
        self.log = folder / "first.log"
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.process = start(typed(find("pip install -e . &&")), self.log, real=True, cwd=self.clone)

    def output(self) -> Path:
        """Return the folder that the command leaves, once it is done."""
        assert self.process.wait(timeout=900) == 0, self.log.read_text()[-3000:]
        return self.clone / "runs" / "tiny_cpu"
