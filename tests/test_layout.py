"""The folders: importable from anywhere, and no larger than a reader can take in."""

import ast
import os
import subprocess
import sys
import zipfile

import pytest
from conftest import REPOSITORY


SOURCES = [file for file in (REPOSITORY / "brushup").rglob("*.py") if "rewards" not in file.parts]
REWARDS = sorted((REPOSITORY / "rewards").glob("*.py"))


def test_rewards_are_one_package_at_two_places():
    assert os.path.samefile(REPOSITORY / "brushup" / "rewards", REPOSITORY / "rewards")


@pytest.mark.parametrize("folder", [REPOSITORY.parent, REPOSITORY / "docs"])
def test_the_package_is_found_from_any_folder(folder):
    program = "import brushup.rewards.length, brushup.prompts.template, brushup.rewards as r; print(r.__file__)"
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str(REPOSITORY / "brushup" / "rewards" / "__init__.py")


def test_a_wheel_has_every_module_and_template(tmp_path):
    program = f"from setuptools import build_meta; print(build_meta.build_wheel({str(tmp_path)!r}))"
    copy = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", REPOSITORY, copy], check=True)
    done = subprocess.run([sys.executable, "-c", program], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    tracked = subprocess.run(["git", "ls-files", "brushup", "rewards"], cwd=copy, capture_output=True, text=True)
    files = [name for name in tracked.stdout.split() if name.endswith((".py", ".jinja"))]
    assert files and {f"brushup/{name}" if name.startswith("rewards/") else name for name in files} <= names


def test_files_and_functions_are_short():
    """At most 300 lines a file and 60 lines a function, as CONTRIBUTING.md says."""
    assert [file.name for file in [*SOURCES, *REWARDS] if len(file.read_text().splitlines()) > 300] == []
    too_long = [
        f"{file.name}: {node.name}"
        for file in [*SOURCES, *REWARDS, *(REPOSITORY / "recipes").glob("*.py")]
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert too_long == []
