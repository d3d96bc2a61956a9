"""Checks of settings: type, range and choices of each, whether it comes from a YAML file, a flag, or a program."""

import dataclasses
import enum
import functools
import json
import math
import types
import typing
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError


RANGES = {  # of numbers, as mathematicians write intervals; lists of numbers: of each
    # Brushup
    "best_of": "[0, inf)",
    "gpu_memory_fraction": "(0, 1]",
    "images_per_prompt": "[1, inf)",
    "log_images_steps": "[0, inf)",
    "max_failed_batches": "[1, inf)",
    "max_train_samples": "[1, inf)",
    "num_replicas": "[1, inf)",
    "port": "[0, 65535]",
    "render_batch_size": "[1, inf)",
    "reward_hacking_window": "[0, inf)",
    "validation_images_per_prompt": "[1, inf)",
    "worker_timeout": "(0, inf)",
    # TRL
    "beta": "[0, inf)",
    "delta": "(0, inf)",
    "epsilon": "(0, inf)",
    "epsilon_high": "(0, inf)",
    "generation_batch_size": "[1, inf)",
    "lora_alpha": "(0, inf)",
    "lora_dropout": "[0, 1)",
    "lora_r": "[1, inf)",
    "max_completion_length": "[1, inf)",
    "min_p": "[0, 1]",
    "num_generations": "[2, inf)",
    "num_generations_eval": "[1, inf)",
    "num_iterations": "[1, inf)",
    "repetition_penalty": "(0, inf)",
    "steps_per_generation": "[1, inf)",
    "temperature": "(0, inf)",
    "top_k": "[0, inf)",
    "top_p": "(0, 1]",
    # transformers
    "adam_beta1": "[0, 1)",
    "adam_beta2": "[0, 1)",
    "adam_epsilon": "(0, inf)",
    "dataloader_num_workers": "[0, inf)",
    "ddp_timeout": "[1, inf)",
    "eval_steps": "(0, inf)",
    "gradient_accumulation_steps": "[1, inf)",
    "learning_rate": "[0, inf)",
    "logging_steps": "(0, inf)",
    "max_grad_norm": "[0, inf)",
    "num_train_epochs": "(0, inf)",
    "per_device_eval_batch_size": "[1, inf)",
    "per_device_train_batch_size": "[1, inf)",
    "save_steps": "(0, inf)",
    "save_total_limit": "[1, inf)",
    "seed": "[0, 4294967295]",
    "warmup_steps": "[0, inf)",
    "weight_decay": "[0, inf)",
}


TAKE_BOOL = ("scale_rewards", "resume_from_checkpoint")  # they are called texts, and take true and false


def check_settings(config: Any, *mappings: str) -> None:
    """Check each setting that is not its default, and turn it into its type: "1e-5" into a number, `clip` into [clip].

    Args:
        config: a dataclass, ours or TRL's; its values are replaced.
        mappings: the names of settings that become dicts: flags arrive as JSON, and None means empty.

    Raises:
        ValueError: a value has the wrong type, is out of its range, or none of the choices; the message begins with
            the key and says what is allowed.
    """
    hints = _hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if value is None or not field.init:
            continue
        if value is not default:
            value = _converted(field.name, value, hints[field.name])
            setattr(config, field.name, value)
        _check_range(field.name, value)
        choices = field.metadata.get("choices")
        if choices and value not in choices:
            raise ValueError(f"{field.name}: {value!r} is none of {', '.join(map(str, choices))}")

    for name in mappings:
        value = getattr(config, name)
        try:
            setattr(config, name, json.loads(value) if isinstance(value, str) else dict(value or {}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}: {value!r} is no mapping (as a flag: JSON, {{...}})") from error


@functools.cache
def _hints(config_class: type) -> dict[str, Any]:
    return typing.get_type_hints(config_class)


def _converted(name: str, value: Any, hint: Any) -> Any:
    """Return the value as its type; raise a ValueError if it is none of that type."""
    kinds = _kinds(hint)
    if any(typing.get_origin(kind) is list for kind in kinds) and str not in kinds and not isinstance(value, list):
        value = [value]  # as the flag does
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, enum.Enum) and isinstance(value, str | bool):
            choices = [choice.value for choice in kind]
            value = "no" if value is False else value  # YAML reads `no` as false
            if value not in choices:
                raise ValueError(f"{name}: {value!r} is none of {', '.join(choices)}")
    if isinstance(value, bool) and name in TAKE_BOOL:
        return value
    if isinstance(value, bool) and {int, float, str} & {*kinds} and bool not in kinds:  # Python takes true for 1
        raise ValueError(f"{name}: {value!r} is no {_describe(hint)}")
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{name}: {value!r} is no {_describe(hint)} ({error.errors()[0]['msg']})") from error


def _kinds(hint: Any) -> tuple:
    """Return the types that the hint allows, without None."""
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return tuple(kind for kind in (typing.get_args(hint) if is_union else (hint,)) if kind is not type(None))


@functools.cache
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def _describe(hint: Any) -> str:
    """Return the type in words that a YAML file's author knows."""
    words = {int: "whole number", float: "number", str: "text", bool: "true or false"}
    described = []
    for kind in _kinds(hint):
        origin = typing.get_origin(kind) or kind
        if origin is list:
            described.append(f"list of {_describe(typing.get_args(kind)[0])}s")
        elif origin is dict:
            described.append("mapping")
        else:
            described.append(words.get(kind, getattr(kind, "__name__", str(kind))))
    return " or ".join(described)


def _check_range(name: str, value: Any) -> None:
    for number in value if isinstance(value, list) else [value]:
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        interval = RANGES.get(name, "(-inf, inf)")
        low, high = map(float, interval[1:-1].split(","))
        above = number >= low if interval[0] == "[" else number > low
        below = number <= high if interval[-1] == "]" else number < high
        if not (math.isfinite(number) and above and below):
            raise ValueError(f"{name}: {number} is not allowed; it must be in {interval}")
    if name == "max_steps" and value != -1 and value < 1:
        raise ValueError(f"max_steps: {value} is not allowed; it must be at least 1, or -1 for num_train_epochs")
