"""Prompt data sets: a JSONL file becomes rows with the chat messages that ask the policy."""

import json
from pathlib import Path

from datasets import Dataset

from brushup.prompts import build_messages


def load_prompts(path: str) -> Dataset:
    """Reads prompts from a JSONL file, one object a line.

    Args:
        path: the file. `user_prompt` is required in each row; all other columns are kept and reach the rewards.

    Returns:
        The rows, with a column `prompt`: the messages (system, user) for the policy.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a JSON object, or its `user_prompt` is missing or empty, or the file has no rows;
            the message gives file and line.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such prompt file (the path is relative to {Path.cwd()})")
    rows = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not valid JSON ({error.msg} at column {error.colno})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object with a `user_prompt`, found {line[:60]!r}")
        user_prompt = row.get("user_prompt")
        if not isinstance(user_prompt, str) or not user_prompt.strip():
            raise ValueError(
                f"{path}:{number}: `user_prompt` must be a text that is not empty, found {user_prompt!r}; "
                f"the row has the keys {', '.join(row) or '(none)'}"
            )
        rows.append({**row, "prompt": build_messages(user_prompt)})
    if not rows:
        raise ValueError(f"{path}: the file has no prompts")
    return Dataset.from_list(rows)
