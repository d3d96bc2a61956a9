"""Prompt data sets: checked rows with the chat messages that ask the policy, in the order to train in."""

import logging
import random
import re
from collections import defaultdict
from pathlib import Path

from datasets import Dataset

from brushup.common import MAX_PROMPT_CHARS
from brushup.prompts.images import load_images
from brushup.prompts.questions import fault_of_questions
from brushup.prompts.reading import read_table
from brushup.prompts.template import build_messages


logger = logging.getLogger(__name__)

DIFFICULTIES = ("easy", "medium", "hard")
TAKEN = (  # the arguments that TRL and the trainer give to rewards beside a data set's columns
    *("prompt", "prompts", "completion", "completions", "completion_ids", "raw_answer", "images", "image_scores"),
    *("rewrite_tokens", "draft", "environments", "trainer_state", "log_extra", "log_metric"),
)


def load_prompts(
    source: str,
    split: str = "train",
    prompt_column: str = "user_prompt",
    skip_bad_rows: bool = False,
    max_samples: int | None = None,
) -> Dataset:
    """Read prompts and check every row.

    Args:
        source: a file (of `PROMPT_FILES`; a line of a `.txt` file is a prompt), or the id of a Hub data set.
        split: of a Hub data set; a file has none. Rows of "train" all have an image, or none has one.
        prompt_column: the column with the user's prompt.
        skip_bad_rows: leave bad rows out, and log how many and the first, instead of raising.
        max_samples: keep only the first so many rows.

    Returns:
        The rows with `user_prompt` and, for the policy, `prompt`: the messages (system, user). All other columns are
        kept and reach the rewards; `category` and `difficulty` are texts, `questions` are checked (see
        `fault_of_questions`). An `image` column (paths are relative to the file) reaches an image-text policy.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is broken, a column is missing or has a name that is taken, a value is of another kind than
            the others of its column, a prompt is empty or too long, its questions are not of their form, an image
            can't be opened, there is a row for each question about a prompt, or no row is left; the message gives
            file and line.
    """
    rows, places, faults = read_table(source, split)
    _check_columns(source, rows, prompt_column)
    for column, fault_of in ((prompt_column, _fault_of), ("questions", fault_of_questions)):
        for index, value in enumerate(rows[column] if column in rows.column_names else []):
            if fault := fault_of(value):
                faults.setdefault(places[index], f"`{column}` {fault}")
    if "image" in rows.column_names:
        rows, unreadable = load_images(rows, Path(source).parent, all_or_none=split == "train")
        for index, fault in unreadable.items():
            faults.setdefault(places[index], fault)
    place, fault = _first(faults) if faults else ("", "")
    if faults and not skip_bad_rows:
        more = f" ({len(faults) - 1} more bad rows; skip_bad_rows: true leaves them out)" if len(faults) > 1 else ""
        raise ValueError(f"{place}: {fault}{more}")
    good = [index for index, place in enumerate(places) if place not in faults]
    if faults:
        logger.warning(
            "%s: %d of %d rows are bad and left out, the first: %s: %s",
            *(source, len(faults), len(good) + len(faults), place, fault),
        )
    if not good:
        raise ValueError(f"{source}: the file has no prompts")
    rows = rows.select(good[:max_samples])
    if prompt_column != "user_prompt":
        rows = rows.rename_column(prompt_column, "user_prompt")
    for column in {"category", "difficulty"} & {*rows.column_names}:  # tables are sorted and labelled by them
        values = [None if value is None else str(value) for value in rows[column]]
        rows = rows.remove_columns(column).add_column(column, values)
    return rows.add_column("prompt", [build_messages(prompt) for prompt in rows["user_prompt"]])


def _first(faults: dict[str, str]) -> tuple[str, str]:
    """Return the place, which ends with the line or the row, and the fault that come first in the file."""
    return min(faults.items(), key=lambda item: int(re.search(r"\d+$", item[0])[0]))


def _fault_of(prompt: object) -> str | None:
    """Return the fault of a user prompt in words; None if there is none."""
    if not isinstance(prompt, str) or not prompt.strip():
        return f"must be a text that is not empty, found {prompt!r}"
    if len(prompt) > MAX_PROMPT_CHARS:
        return f"has {len(prompt)} characters, more than {MAX_PROMPT_CHARS}: {prompt[:40]!r} ..."
    return None


def _check_columns(source: str, rows: Dataset, prompt_column: str) -> None:
    """Raise a ValueError if the column with the prompts is missing, or another one has a name that is taken."""
    names = rows.column_names
    if prompt_column not in names and len(rows):
        raise ValueError(
            f"{source}: there is no column {prompt_column!r}; there is {', '.join(names)} "
            "(prompt_column names the one with the prompts)"
        )
    questions = [name for name in names if name.startswith("question") and name != "questions"]
    if questions and len(set(rows[prompt_column])) <= len(rows) / 2:
        raise ValueError(
            f"{source}: it has a row for each question (`{questions[0]}`), {len(rows)} rows of "
            f"{len(set(rows[prompt_column]))} prompts; make it one row for each prompt, the questions in a list"
        )
    taken = [name for name in names if name in TAKEN and name != prompt_column]
    taken += ["user_prompt"] if prompt_column != "user_prompt" and "user_prompt" in names else []
    if taken:
        raise ValueError(
            f"{source}: the column {taken[0]!r} has a name that rewards get from training itself; rename it (taken: "
            f"{', '.join(TAKEN)})"
        )


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
