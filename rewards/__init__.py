"""Rewards by name.

An *image reward* is `(images, user_prompts, prompts) -> list[float | None]`; it is loaded where the pictures are. A
*text reward* has TRL's signature, `(prompts, completions, **columns) -> list[float | None]`, and gets parsed
completions. Either is a function, or a class that is built with the keyword arguments that stand beside its name
(an image reward's class also with `device`, if it takes that). The first parameter's name, `images` or not, tells
which it is. One that compares the pictures of a rewrite says so by the attribute `least_pictures = 2`: all pictures
of a rewrite come in one call. A class with `takes_pixels = True` gets them as tensors on the renderer's device, uint8,
(3, height, width), instead of as PIL images.
"""

import difflib
import functools
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any


REWARDS = {
    "aesthetic": "brushup.rewards.aesthetic:Aesthetic",
    "clip": "brushup.rewards.clip:ClipReward",
    "compression": "brushup.rewards.compression:CompressionReward",
    "diversity": "brushup.rewards.diversity:Diversity",
    "format": "brushup.rewards.format:format_reward",
    "hpsv2": "brushup.rewards.hpsv2:HPSv2",
    "image_quality": "brushup.rewards.image_quality:image_quality",
    "image_reward": "brushup.rewards.image_reward:ImageReward",
    "intent": "brushup.rewards.intent:IntentReward",
    "keyword_retention": "brushup.rewards.keyword_retention:keyword_retention",
    "language": "brushup.rewards.language:LanguageReward",
    "length": "brushup.rewards.length:LengthReward",
    "ocr": "brushup.rewards.ocr:OcrReward",
    "pickscore": "brushup.rewards.pickscore:PickScore",
    "quality_score": "brushup.rewards.quality_score:quality_score",
    "repetition": "brushup.rewards.repetition:RepetitionReward",
    "safety": "brushup.rewards.safety:SafetyReward",
    "siglip": "brushup.rewards.siglip:SigLIP",
    "style_consistency": "brushup.rewards.style_consistency:StyleConsistency",
    "vqa": "brushup.rewards.vqa:VQAReward",
}


@functools.cache
def resolve(name: str) -> Callable:
    """The function or class behind a key of `REWARDS`, `package.module:attribute` or `path/to/file.py:attribute`.

    Raises:
        ValueError: there is none of that name; the message has the near misses and the list.
    """
    target = REWARDS.get(name, name)
    if ":" not in target:
        near = difflib.get_close_matches(name, REWARDS)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        raise ValueError(
            f"unknown reward {name!r}: {hint}There is {', '.join(REWARDS)}; your own are named "
            "package.module:attribute or path/to/file.py:attribute"
        )
    module, attribute = target.rsplit(":", 1)
    try:
        if not module.endswith(".py"):
            return getattr(importlib.import_module(module), attribute)
        spec = importlib.util.spec_from_file_location(Path(module).stem, module)
        loaded = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(loaded)
        return getattr(loaded, attribute)
    except (ImportError, OSError, AttributeError) as error:
        raise ValueError(f"cannot load {name!r}: {type(error).__name__}: {error}") from error


def label(name: str) -> str:
    """What tables and trackers call the reward: its key, or the attribute of a `module:attribute`."""
    return name.rsplit(":", 1)[-1]


def is_image_reward(name: str) -> bool:
    """Whether the reward looks at pictures: its first parameter is called `images`."""
    target = resolve(name)
    function = target.__call__ if inspect.isclass(target) else target
    parameters = [p for p in inspect.signature(function).parameters if p != "self"]
    return bool(parameters) and parameters[0] == "images"


def least_pictures(name: str) -> int:
    """How many pictures of a rewrite the reward needs: 1, or 2 if it compares them."""
    return getattr(resolve(name), "least_pictures", 1)


def load_reward(name: str, device: str | None = None, **kwargs: Any) -> Callable:
    """The reward of that name, ready to call; `kwargs` build it if it is a class, with `device` if it takes that.

    Raises:
        ValueError: as `check_kwargs`.
    """
    check_kwargs(name, kwargs)
    target = resolve(name)
    if not inspect.isclass(target):
        return target
    return target(**kwargs, **({"device": device} if "device" in inspect.signature(target).parameters else {}))


def check_kwargs(name: str, kwargs: dict[str, Any]) -> None:
    """Raises a ValueError as `resolve`, or if the reward does not take these keyword arguments."""
    target = resolve(name)
    if not inspect.isclass(target):
        if kwargs:
            raise ValueError(f"reward {name!r} is a function and takes no reward_kwargs, but got {', '.join(kwargs)}")
        return
    signature = inspect.signature(target)
    try:
        signature.bind(**({"device": None} if "device" in signature.parameters else {}) | kwargs)
    except TypeError as error:
        raise ValueError(f"reward_kwargs of {name!r}: {error}; it takes {signature}") from error
