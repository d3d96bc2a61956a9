"""Prompt files, or a Hub data set, become a table, with the place of each row and its faults."""

import csv
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
from datasets import Dataset, Features, Json


PROMPT_FILES = (".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet")


def read_table(source: str, split: str) -> tuple[Dataset, list[str], dict[str, str]]:
    """Return the rows, the place of each (file and line), and the fault of each place that could not be read.

    Args:
        source: a file (of `PROMPT_FILES`), or the id of a Hub data set. A `.json` file holds a list of objects; each
            line of a `.txt` file is a `user_prompt`.
        split: of a Hub data set.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8, or not of its kind.
    """
    readers = {".jsonl": read_jsonl, ".json": _read_json, ".csv": read_csv, ".tsv": read_csv, ".txt": read_txt}
    suffix = Path(source).suffix
    if suffix in PROMPT_FILES and not Path(source).is_file():
        raise FileNotFoundError(f"{source}: no such prompt file (the path is relative to {Path.cwd()})")
    if suffix not in readers:
        try:
            rows = Dataset.from_parquet(source) if suffix == ".parquet" else datasets.load_dataset(source, split=split)
        except Exception as error:  # of datasets, pyarrow and the Hub, each with classes of its kind
            raise ValueError(f"{source}: cannot be read: {type(error).__name__}: {error}") from error
        return rows, [f"{source}: row {index}" for index in range(len(rows))], {}
    lines = [(f"{source}:{number}", row) for number, row in readers[suffix](source)]
    faults = {place: row for place, row in lines if isinstance(row, str)}
    rows = {place: row for place, row in lines if isinstance(row, dict)}
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    columns, mixed = {}, {}  # mixed: nested values that have no type in common
    for name in names:
        values = [row.get(name) for row in rows.values()]
        for index, fault in _unlike_the_others(values):
            faults.setdefault(list(rows)[index], f"`{name}` {fault}")
            values[index] = None
        columns[name] = values
        if not _fits(values):
            mixed[name] = Json()
    flat = Dataset.from_dict({name: values for name, values in columns.items() if name not in mixed})
    features = Features({name: mixed.get(name) or flat.features[name] for name in columns})
    return Dataset.from_dict(columns, features), list(rows), faults


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file, with or without a byte order mark; raise a ValueError for another encoding."""
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}:{line}: the byte {data[error.start]:#04x} is not UTF-8; save the file in that encoding"
        ) from error


def read_jsonl(path: str) -> Iterator[tuple[int, dict | str]]:
    """Yield each line's number, from 1, and its row or the fault in it; empty lines are skipped."""
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield number, row if isinstance(row, dict) else f"expected a JSON object, found {line[:60]}"
        except (json.JSONDecodeError, RecursionError) as error:
            reason = f"{error.msg} at column {error.colno}" if isinstance(error, ValueError) else "nested too deeply"
            yield number, f"not valid JSON ({reason})"


def _read_json(path: str) -> Iterator[tuple[int, dict | str]]:
    """Yield the number of each object of the list, from 1, and the object, or the fault in it."""
    try:
        rows = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: not valid JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(rows, list):
        raise ValueError(f"{path}: expected a list of objects, found {_kind(rows)}")
    for number, row in enumerate(rows, start=1):
        yield number, row if isinstance(row, dict) else f"expected a JSON object, found {json.dumps(row)[:60]}"


def read_txt(path: str) -> Iterator[tuple[int, dict]]:
    """Yield each line's number, from 1, and the prompt on it; empty lines are skipped."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield number, {"user_prompt": line.strip()}


def read_csv(path: str) -> Iterator[tuple[int, dict | str]]:
    """Yield each row's last line number, and the row or the fault in it; an empty cell is None."""
    csv.field_size_limit(sys.maxsize)  # a cell that is too long for a prompt is refused with its line
    dialect = "excel-tab" if path.endswith(".tsv") else "excel"
    reader = csv.DictReader(read_text(path).splitlines(keepends=True), dialect=dialect)
    try:
        for row in reader:
            if None in row or None in row.values():
                count = sum(value is not None for name, value in row.items() if name) + len(row.get(None, []))
                yield reader.line_num, f"{count} cells, but the header has {len(reader.fieldnames)}"
            else:
                yield reader.line_num, {name: value or None for name, value in row.items()}
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: not a valid table ({error})") from error


def _unlike_the_others(values: list[Any]) -> Iterable[tuple[int, str]]:
    """Return the index and fault of each value that can't be in one column with the others: most of them decide."""
    kinds = [_kind(value) for value in values]
    known = Counter(kind for kind in kinds if kind)
    usual = known.most_common(1)[0][0] if known else None
    faults = {
        i: f"is {values[i]!r:.60}, not {usual} as elsewhere"
        for i, kind in enumerate(kinds)
        if kind not in (None, usual)
    }
    rest = [None if index in faults else value for index, value in enumerate(values)]
    if usual in ("a list", "a mapping"):  # each value may be of its kind, but must be JSON that a table can store
        alone = [index for index, value in enumerate(rest) if not _is_json(value)]
        return sorted((faults | {i: f"is {rest[i]!r:.60}, which no column can hold" for i in alone}).items())
    while not _fits(rest):
        low, high = 0, len(rest)  # the first rows that do fit, and the fewest that do not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _fits(rest[:middle]) else (low, middle)
        faults[high - 1] = f"is {rest[high - 1]!r:.60}, which no column can hold beside the rows before"
        rest[high - 1] = None
    return sorted(faults.items())


def _kind(value: Any) -> str | None:
    """Return the kind of a JSON value in words; None for null."""
    others = {str: "a text", bool: "true or false", list: "a list", dict: "a mapping"}
    return "a number" if type(value) in (int, float) else others.get(type(value))


def _is_json(value: Any) -> bool:
    try:
        Json().encode_example(value)
    except (OverflowError, UnicodeError):
        return False
    return True


def _fits(values: list[Any]) -> bool:
    try:
        pyarrow.array(values)
    except (pyarrow.ArrowException, OverflowError, UnicodeError):
        return False
    return True
