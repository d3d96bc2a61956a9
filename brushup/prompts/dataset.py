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

from brushup.prompts.template import build_messages


logger = logging.getLogger(__name__)

DIFFICULTIES = ("easy", "medium", "hard")


def load_prompts(
    source: str,
    split: str = "train",
    prompt_column: str = "user_prompt",
    skip_bad_rows: bool = False,
    max_samples: int | None = None,
) -> Dataset:
    """Read prompts and check every row.

    Args:
        source: a `.jsonl`, `.csv` or `.parquet` file, or the id of a Hub data set.
        split: of a Hub data set; a file has none.
        prompt_column: the column with the user's prompt.
        skip_bad_rows: leave bad rows out, and log how many and the first, instead of raising.
        max_samples: keep only the first so many rows.

    Returns:
        The rows with `user_prompt` and, for the policy, `prompt`: the messages (system, user). All other columns are
        kept and reach the rewards. An `image` column (paths are relative to the file) reaches an image-text policy.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is broken, a column is missing, a prompt is empty, an image file does not exist, or no row
            is left; the message gives file and line.
    """
    rows, places, bad = _read(source, split)
    if prompt_column not in rows.column_names and len(rows):
        raise ValueError(
            f"{source}: there is no column {prompt_column!r}; there is {', '.join(rows.column_names)} "
            "(prompt_column names the one with the prompts)"
        )
    folder, good = Path(source).parent, []
    has_paths = "image" in rows.column_names and not isinstance(rows.features["image"], datasets.Image)
    images = rows["image"] if has_paths else [None] * len(rows)
    for index, (prompt, image) in enumerate(zip(rows[prompt_column] if len(rows) else [], images, strict=True)):
        if not isinstance(prompt, str) or not prompt.strip():
            bad.append(f"{places[index]}: `{prompt_column}` must be a text that is not empty, found {prompt!r}")
        elif image is not None and not (folder / image).is_file():
            bad.append(f"{places[index]}: there is no image {folder / image}")
        else:
            good.append(index)
    if bad and not skip_bad_rows:
        more = f" ({len(bad) - 1} more bad rows; skip_bad_rows: true leaves them out)" if len(bad) > 1 else ""
        raise ValueError(bad[0] + more)
    if bad:
        total = len(good) + len(bad)
        logger.warning("%s: %d of %d rows are bad and left out, the first: %s", source, len(bad), total, bad[0])
    if not good:
        raise ValueError(f"{source}: the file has no prompts")
    rows = rows.select(good[:max_samples])
    if prompt_column != "user_prompt":
        rows = rows.rename_column(prompt_column, "user_prompt")
    if has_paths:
        paths = [None if path is None else str(folder / path) for path in rows["image"]]
        rows = rows.remove_columns("image").add_column("image", paths).cast_column("image", datasets.Image())
    return rows.add_column("prompt", [build_messages(prompt) for prompt in rows["user_prompt"]])


def _read(source: str, split: str) -> tuple[Dataset, list[str], list[str]]:
    """Return the rows, the place of each (file and line), and an error for each line that could not be read."""
    readers = {".jsonl": _read_jsonl, ".csv": _read_csv}
    suffix = Path(source).suffix
    if suffix in (".jsonl", ".csv", ".parquet") and not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such prompt file (the path is relative to {Path.cwd()})")
    if suffix not in readers:
        rows = Dataset.from_parquet(source) if suffix == ".parquet" else datasets.load_dataset(source, split=split)
        return rows, [f"{source}: row {index}" for index in range(len(rows))], []
    lines = list(readers[suffix](source))
    rows = {f"{source}:{number}": row for number, row in lines if isinstance(row, dict)}
    bad = [f"{source}:{number}: {error}" for number, error in lines if isinstance(error, str)]
    columns = dict.fromkeys(name for row in rows.values() for name in row)
    table = Dataset.from_dict({name: [row.get(name) for row in rows.values()] for name in columns})
    return table, list(rows), bad


def _read_jsonl(path: str) -> Iterator[tuple[int, dict | str]]:
    """Yield each line's number, from 1, and its row or the error in it; empty lines are skipped."""
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield number, row if isinstance(row, dict) else f"expected a JSON object, found {line[:60]}"
        except json.JSONDecodeError as error:
            yield number, f"not valid JSON ({error.msg} at column {error.colno})"


def _read_csv(path: str) -> Iterator[tuple[int, dict | str]]:
    """Yield each row's last line number, and the row or the error in it; an empty cell is None."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            if None in row or None in row.values():
                count = sum(value is not None for name, value in row.items() if name) + len(row.get(None, []))
                yield reader.line_num, f"{count} cells, but the header has {len(reader.fieldnames)}"
            else:
                yield reader.line_num, {name: value or None for name, value in row.items()}


def order_rows(rows: Dataset, balance_by: str | None, curriculum: bool, seed: int) -> Dataset:
    """Return the rows in the order to train in; the trainer must then not shuffle.

    Args:
        balance_by: "category" or "difficulty": its values take turns, so that each batch has all of them in equal
            parts; rows of the rarer values come again until the most frequent one is through.
        curriculum: easy rows first, then medium, then hard; within each by `balance_by`, or shuffled.
        seed: of the shuffling.

    Raises:
        ValueError: the rows lack the column, or a difficulty is none of `DIFFICULTIES`.
    """
    for column in {balance_by, "difficulty" if curriculum else None} - {None}:
        if column not in rows.column_names:
            raise ValueError(
                f"the training prompts have no column {column!r}; there is {', '.join(rows.column_names)}"
            )
    shuffled = random.Random(seed).sample(range(len(rows)), len(rows))
    levels = rows["difficulty"] if curriculum else [None] * len(rows)
    unknown = set(levels) - set(DIFFICULTIES)
    if curriculum and unknown:
        raise ValueError(f"curriculum: `difficulty` must be one of {', '.join(DIFFICULTIES)}, found {unknown.pop()!r}")
    order = []
    for level in DIFFICULTIES if curriculum else [None]:
        indices = [index for index in shuffled if levels[index] == level]
        order += _take_turns(indices, rows[balance_by]) if balance_by else indices
    return rows.select(order)


def _take_turns(order: list[int], values: list) -> list[int]:
    """Return the indices of `order` so that their `values` take turns; the rarer values start over."""
    by_value = defaultdict(list)
    for index in order:
        by_value[values[index]].append(index)
    longest = max(map(len, by_value.values()), default=0)
    return [indices[turn % len(indices)] for turn in range(longest) for indices in by_value.values()]
