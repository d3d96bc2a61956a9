"""The flags and YAML keys of a recipe: help and misspelled names at once, values checked before any model loads.

PyTorch and TRL take ten seconds to import. So the names are read from the source files of the settings' classes.
"""

import argparse
import ast
import copy
import difflib
import importlib.machinery
import itertools
import logging
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import psutil
import yaml


ALL = (
    *("DataConfig", "RenderConfig", "PromptEnhancerConfig", "ModelConfig"),
    *("EvaluationConfig", "ServeConfig", "DemoConfig"),
)
USAGE = "%(prog)s --config FILE [--name VALUE ...]"
FILES = {  # of the classes, by package and path
    **dict.fromkeys(
        ("AskingConfig", "EvaluationConfig", "DemoConfig", "ServeConfig"), ("brushup", "recipe_config.py")
    ),
    "GRPOConfig": ("trl", "trainer/grpo_config.py"),
    "_BaseConfig": ("trl", "trainer/base_config.py"),
    "ModelConfig": ("trl", "trainer/model_config.py"),
    "TrainingArguments": ("transformers", "training_args.py"),
}


def answer_at_once(doc: str, *classes: str) -> None:
    """End the program if its flags ask for help, or if a flag, the settings file or a key of it does not exist.

    Call it before the imports of a recipe, which take ten seconds. Recipes share settings files, so a file may have
    keys that only another one reads.

    Args:
        doc: the recipe's docstring; the help begins with it.
        classes: the names of the dataclasses whose fields are flags, ours or TRL's.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # its import speaks of kernels that a CPU lacks
    groups = _read_fields(classes)
    known = ["config", *(name for fields in groups.values() for name in fields)]
    parser = _parser(doc, groups)
    words = sys.argv[1:]
    if {"-h", "--help"} & {*words}:
        parser.print_help()
        sys.exit()
    for word in words:
        name = word.split("=")[0].removeprefix("--").replace("-", "_")
        if word.startswith("--") and not {name, name.removeprefix("no_")} & {*known}:
            _refuse(parser, _unknown(f"--{name}", name, known))
    path = _config_path(words)
    try:
        keys = read_settings_file(path) if path is not None else {}
    except (OSError, ValueError) as error:
        _refuse(parser, str(error))
    known = ["env", *(name for fields in _read_fields(ALL).values() for name in fields)]
    for key in keys:
        if key not in known:
            _refuse(parser, _unknown(f"{path}: the key {key}", str(key), known))


def say_after_launcher(text: str) -> None:
    """Write the text to standard error once the launcher of this process has ended, on the main process only.

    `accelerate launch` ends a run that failed with a traceback of itself: the text would be far above it.
    """
    launcher = psutil.Process().parent()  # None in a container of which this is the first process
    command = " ".join(launcher.cmdline()[:4]) if launcher else ""
    is_launched = re.search(r"accelerate|torchrun|torch\.distributed|deepspeed", command)
    if is_launched and os.environ.get("RANK", "0") == "0":
        program = (  # OSError: the launcher is gone already; AttributeError: not on Linux
            "import contextlib, os, select, sys\n"
            "with contextlib.suppress(OSError, AttributeError):\n"
            "    select.select([os.pidfd_open(int(sys.argv[1]))], [], [], 60)\n"
            "print('\\n' + sys.argv[2], file=sys.stderr)"
        )
        subprocess.Popen([sys.executable, "-c", program, str(launcher.pid), text], start_new_session=True)


def parse(*classes: type) -> tuple[Any, ...]:
    """Return a dataclass of each class from the flags and the settings file; end the program if a value is wrong."""
    from trl import TrlParser

    from brushup.checks import check_settings

    parser = TrlParser(classes, usage=USAGE)
    parser.error = partial(_refuse, parser)
    try:
        *configs, _, unknown = parser.parse_args_and_config(  # the second to last: keys of other recipes
            return_remaining_strings=True, separate_remaining_strings=True
        )
        for config in configs:
            if type(config).__module__.startswith("trl"):
                check_settings(copy.copy(config))  # ours check themselves
    except ValueError as error:
        say_after_launcher(f"error: {error}")
        sys.exit(f"error: {error}")
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    return tuple(configs)


def read_settings_file(path: str) -> dict[str, Any]:
    """Return the settings of a YAML file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no YAML, or no mapping; the message has the file and, if it is known, the line.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise OSError(f"--config {path}: {error.strerror} (the path is relative to {os.getcwd()})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path}: this is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config {path}: it must have lines `key: value`, found {str(settings)[:60]!r}")
    return settings


def _config_path(words: list[str]) -> str | None:
    """Return the word after `--config`, as TRL's parser reads it; None without that flag."""
    return dict(itertools.pairwise([*words, ""])).get("--config")


def _refuse(parser: argparse.ArgumentParser, text: str) -> NoReturn:
    if "arguments are required" in text and not _config_path(sys.argv):
        text = f"--config names the YAML file of the run: --config recipes/tiny_cpu.yaml ({text})"
    say_after_launcher(f"error: {text}")
    argparse.ArgumentParser.error(parser, text)


def _unknown(what: str, name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"{what} does not exist{hint} (--help lists all)"


@dataclass(frozen=True)
class Flag:
    """A field of a settings class: its type, default and help as the source writes them."""

    kind: str
    default: str
    text: str


def _read_fields(classes: tuple[str, ...]) -> dict[str, dict[str, Flag]]:
    """Return the fields of the classes and their bases by the title of a group, ours first, and by name."""
    ours: dict[str, dict[str, Flag]] = {}
    theirs: dict[str, dict[str, Flag]] = {}
    seen: set[str] = set()
    queue = list(classes)
    while queue:
        name = queue.pop(0)
        package, file = FILES.get(name, ("brushup", "config.py"))
        path = _folder_of(package) / file
        body = ast.parse(path.read_text(encoding="utf-8")).body
        (node,) = (item for item in body if isinstance(item, ast.ClassDef) and item.name == name)
        fields = {field: flag for field, flag in _fields_of(node) if field not in seen}
        seen |= fields.keys()
        if package == "brushup":
            ours[ast.get_docstring(node).splitlines()[0].rstrip(".")] = fields
        else:
            theirs[f"{name.strip('_')} of {package}, in short"] = fields
        queue += [base.id for base in node.bases if isinstance(base, ast.Name) and base.id not in queue]
    return {title: fields for title, fields in (ours | theirs).items() if fields}


def _folder_of(package: str) -> Path:
    if package == "brushup":
        return Path(__file__).parent
    return Path(importlib.machinery.PathFinder.find_spec(package).submodule_search_locations[0])


def _fields_of(node: ast.ClassDef) -> Iterator[tuple[str, Flag]]:
    """Yield the name of each field of a dataclass, and its flag."""
    for item in node.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.value, ast.Call):
            continue
        keywords = {keyword.arg: keyword.value for keyword in item.value.keywords}
        if ast.unparse(item.value.func) == "setting":  # ours, see config.py
            text = ast.literal_eval(item.value.args[0])
        else:
            metadata = keywords.get("metadata", ast.Dict([], []))
            texts = [value for key, value in zip(metadata.keys, metadata.values, strict=True) if key.value == "help"]
            text = texts[0].value if texts and isinstance(texts[0], ast.Constant) else ""
            text = textwrap.shorten(text.split(". ")[0], 150, placeholder=" ...")
        if "choices" in keywords and isinstance(keywords["choices"], ast.List):
            text += f" One of {', '.join(map(str, ast.literal_eval(keywords['choices'])))}."
        default = ast.unparse(keywords["default"]) if "default" in keywords else ""
        kind = ast.unparse(item.annotation).replace(" | None", "").replace("None | ", "").split(" | str")[0]
        yield item.target.id, Flag(kind, default, text)


def _parser(doc: str, groups: dict[str, dict[str, Flag]]) -> argparse.ArgumentParser:
    """Return a parser that prints the help and the errors; it parses nothing."""
    parser = argparse.ArgumentParser(
        usage=USAGE,
        description=doc,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, max_help_position=36),
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML file with these names as keys; flags come first")
    for title, fields in groups.items():
        group = parser.add_argument_group(title)
        for name, flag in fields.items():
            default = f" (default: {flag.default})" if flag.default not in ("", "None", "''") else ""
            group.add_argument(f"--{name}", metavar=flag.kind.upper(), help=(flag.text + default).replace("%", "%%"))
    return parser
