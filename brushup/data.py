"""Prompt data sets: JSONL, CSV, Parquet or a Hub data set become rows with the chat messages that ask the policy."""

import csv
import json
import logging
import random
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import datasets
from datasets import Dataset

from brushup.prompts import build_messages


logger = logging.getLogger(__name__)

DIFFICULTIES = ("easy", "medium", "hard")


def load_prompts(
    source: str,
    split: str = "train",
    prompt_column: str = "user_prompt",
    skip_bad_rows: bool = False,
    max_samples: int | None = None,
) -> Dataset:
    """Reads prompts and checks every row.

    Args:
        source: a `.jsonl`, `.csv` or `.parquet` file, or the id of a Hub data set.
        split: of a Hub data set; a file has none.
        prompt_column: the column with the user's prompt.
        skip_bad_rows: leave bad rows out, and log how many and the first, instead of raising.
        max_samples: keep the first so many rows.

    Returns:
        The rows with `user_prompt` and, for the policy, `prompt`: the messages (system, user). All other columns are
        kept and reach the rewards. An `image` column (paths are relative to the file) reaches an image-text policy.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is broken, a column is missing, a prompt is empty, a picture does not exist, or no row is
            left; the message gives file and line.
    """
    rows, places, bad = _read(source, split)
    if prompt_column not in rows.column_names and len(rows):
        raise ValueError(
            f"{source}: there is no column {prompt_column!r}; there is {', '.join(rows.column_names)} "
            "(prompt_column names the one with the prompts)"
        )
    good = []
    pictures = rows["image"] if "image" in rows.column_names and _holds_paths(rows) else [None] * len(rows)
    for index, (prompt, picture) in enumerate(zip(rows[prompt_column] if len(rows) else [], pictures, strict=True)):
        if not isinstance(prompt, str) or not prompt.strip():
            bad.append(f"{places[index]}: `{prompt_column}` must be a text that is not empty, found {prompt!r}")
        elif picture is not None and not (Path(source).parent / picture).is_file():
            bad.append(f"{places[index]}: there is no picture {Path(source).parent / picture}")
        else:
            good.append(index)
    if bad and not skip_bad_rows:
        more = f" ({len(bad) - 1} more bad rows; skip_bad_rows: true leaves them out)" if len(bad) > 1 else ""
        raise ValueError(bad[0] + more)
    if bad:
        logger.warning(
            "%s: %d of %d rows are bad and left out, the first: %s", source, len(bad), len(good) + len(bad), bad[0]
        )
    if not good:
        raise ValueError(f"{source}: the file has no prompts")
    rows = rows.select(good[:max_samples])
    if prompt_column != "user_prompt":
        rows = rows.rename_column(prompt_column, "user_prompt")
    if "image" in rows.column_names and _holds_paths(rows):
        paths = [path if path is None else str(Path(source).parent / path) for path in rows["image"]]
        rows = rows.remove_columns("image").add_column("image", paths).cast_column("image", datasets.Image())
    return rows.add_column("prompt", [build_messages(prompt) for prompt in rows["user_prompt"]])


def _holds_paths(rows: Dataset) -> bool:
    return not isinstance(rows.features["image"], datasets.Image)


def _read(source: str, split: str) -> tuple[Dataset, list[str], list[str]]:
    """The rows, where each stands (file and line), and what is wrong with the lines that could not be read."""
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    suffix = Path(source).suffix
    if suffix in (".jsonl", ".csv", ".parquet") and not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such prompt file (the path is relative to {Path.cwd()})")
    if suffix not in readers:
        rows = Dataset.from_parquet(source) if suffix == ".parquet" else datasets.load_dataset(source, split=split)
        return rows, [f"{source}: row {index}" for index in range(len(rows))], []
    places, rows, bad = [], [], []
    for place, row in readers[suffix](source):
        if isinstance(row, dict):
            places.append(place)
            rows.append(row)
        else:
            bad.append(f"{place}: {row}")
    columns = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns}), places, bad


def _read_jsonl(path: str) -> Iterator[tuple[str, dict | str]]:
    """(file and line, the row or what is wrong with it)."""
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            what = row if isinstance(row, dict) else f"expected a JSON object, found {line[:60]}"
        except json.JSONDecodeError as error:
            what = f"not valid JSON ({error.msg} at column {error.colno})"
        yield f"{path}:{number}", what


def _read_csv(path: str) -> Iterator[tuple[str, dict | str]]:
    """(file and line, the row or what is wrong with it). An empty cell is None."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row or None in row.values():
                wanted = len(reader.fieldnames)
                found = sum(value is not None for name, value in row.items() if name) + len(row.get(None, []))
                yield f"{path}:{reader.line_num}", f"{found} cells, but the header has {wanted}"
            else:
                yield f"{path}:{reader.line_num}", {name: value or None for name, value in row.items()}


def order_rows(rows: Dataset, balance_by: str | None, curriculum: bool, seed: int) -> Dataset:
    """The order to train in, if it matters; the trainer must then not shuffle.

    Args:
        balance_by: "category" or "difficulty": its values take turns, so that each batch has all of them in equal
            parts; rows of the rarer values come again until the most frequent one is through.
        curriculum: easy rows first, then medium, then hard; within each by `balance_by`, or shuffled.

    Raises:
        ValueError: the rows lack the column, or a difficulty is none of `DIFFICULTIES`.
    """
    for column in {balance_by, "difficulty" if curriculum else None} - {None}:
        if column not in rows.column_names:
            raise ValueError(
                f"the training prompts have no column {column!r}; there is {', '.join(rows.column_names)}"
            )
    rng = random.Random(seed)
    shuffled = rng.sample(range(len(rows)), len(rows))
    if not curriculum:
        return rows.select(_take_turns(shuffled, rows[balance_by]) if balance_by else shuffled)
    levels = rows["difficulty"]
    unknown = set(levels) - set(DIFFICULTIES)
    if unknown:
        raise ValueError(f"curriculum: `difficulty` must be one of {', '.join(DIFFICULTIES)}, found {unknown.pop()!r}")
    order = []
    for level in DIFFICULTIES:
        some = [index for index in shuffled if levels[index] == level]
        order += _take_turns(some, rows[balance_by]) if balance_by else some
    return rows.select(order)


def _take_turns(order: list[int], values: list) -> list[int]:
    """The indices in `order`, so that their `values` take turns; the rarer values start over."""
    by_value = defaultdict(list)
    for index in order:
        by_value[values[index]].append(index)
    longest = max(map(len, by_value.values()), default=0)
    return [some[turn % len(some)] for turn in range(longest) for some in by_value.values()]
