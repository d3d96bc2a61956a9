"""Rewards by name.

An *image reward* is `(images, user_prompts, prompts) -> list[float | None]`, loaded where images are rendered. A *text
reward* has TRL's signature, `(prompts, completions, **columns) -> list[float | None]`, and gets parsed completions. If
the first parameter is called `images`, it is an image reward. Either is a function, or a class that is built with its
`reward_kwargs` and, if it has such a parameter, with `device`.

An image reward that needs more of a prompt's row than the user prompt names the columns as further parameters without
a default, `(images, user_prompts, prompts, questions)`: each is a list with a value for each image, None where the row
has none.

A reward that compares the images of a rewrite has the attribute `least_images = 2`; then all images of a rewrite
come in one call. A class with `takes_pixels = True` gets images as tensors on the renderer's device, uint8, (3,
height, width), otherwise as PIL images.
"""

import asyncio
import difflib
import functools
import importlib.util
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brushup.common import whole_on_each_rank
from brushup.config import RewardConfig
from brushup.rewards.guard import call_guarded


REWARDS = {
    "aesthetic": "brushup.rewards.aesthetic:Aesthetic",
    "clip": "brushup.rewards.clip:ClipReward",
    "compression": "brushup.rewards.compression:CompressionReward",
    "diversity": "brushup.rewards.diversity:Diversity",
    "format": "brushup.rewards.format:format_reward",
    "geneval": "brushup.rewards.geneval:GenEval",
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
    "questions": "brushup.rewards.questions:QuestionsReward",
    "repetition": "brushup.rewards.repetition:RepetitionReward",
    "safety": "brushup.rewards.safety:SafetyReward",
    "siglip": "brushup.rewards.siglip:SigLIP",
    "style_consistency": "brushup.rewards.style_consistency:StyleConsistency",
    "vqa": "brushup.rewards.vqa:VQAReward",
}


@functools.cache
def resolve(name: str) -> Callable:
    """Return the function or class that the name stands for.

    Args:
        name: a key of `REWARDS`, `package.module:attribute` or `path/to/file.py:attribute`.

    Raises:
        ValueError: the name is unknown (the message lists similar names, and all), or its file cannot be loaded.
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
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        raise ValueError(f"cannot load {name!r}: {type(error).__name__}: {error}") from error


def _parameters(reward: Callable) -> list[inspect.Parameter]:
    """Return the parameters of a reward's call; `reward` is a function, a class, or loaded."""
    function = reward.__call__ if inspect.isclass(reward) else reward
    return [parameter for name, parameter in inspect.signature(function).parameters.items() if name != "self"]


def columns_read(reward: Callable) -> list[str]:
    """Return the columns of the prompts that an image reward reads: its parameters without a default after the first
    three."""
    required = [parameter for parameter in _parameters(reward)[3:] if parameter.default is parameter.empty]
    return [parameter.name for parameter in required if parameter.kind is not parameter.VAR_KEYWORD]


@dataclass(frozen=True)
class RewardSpec:
    """One reward of a run, as the settings describe it.

    Attributes:
        source: as `reward_funcs` names it.
        weight: its share of the total; 0 only monitors.
        kwargs: the keyword arguments that build it.
        transforms: the steps that its values go through before they are weighted, as `reward_transforms` writes them.
        gate: the value below which the total is 0; None if there is no gate.
        gain_gate: the same for the gain over the image of the user's own prompt at the same seed.
    """

    source: str
    weight: float = 1.0
    kwargs: dict[str, Any] = field(default_factory=dict)
    transforms: dict[str, Any] | str | None = None
    gate: float | None = None
    gain_gate: float | None = None

    @property
    def name(self) -> str:
        """The name in tables and trackers: the key of `REWARDS`, or the attribute of `module:attribute`."""
        return self.source.rsplit(":", 1)[-1]

    @property
    def is_users(self) -> bool:
        """Whether it comes from a user's module or file."""
        return ":" in self.source

    @property
    def looks_at_images(self) -> bool:
        """Whether it is an image reward: its first parameter is called `images`."""
        parameters = _parameters(resolve(self.source))
        return bool(parameters) and parameters[0].name == "images"

    @property
    def least_images(self) -> int:
        """How many images of a rewrite it needs: 1, or 2 if it compares them."""
        return getattr(resolve(self.source), "least_images", 1)

    def check(self) -> None:
        """Raise a ValueError if there is no such reward, or it does not take the keyword arguments."""
        target = resolve(self.source)
        if not inspect.isclass(target):
            if self.kwargs:
                raise ValueError(
                    f"reward {self.source!r} is a function and takes no reward_kwargs, but got "
                    f"{', '.join(self.kwargs)}"
                )
            return
        signature = inspect.signature(target)
        device = {"device": None} if "device" in signature.parameters else {}
        try:
            signature.bind(**device | self.kwargs)
        except TypeError as error:
            raise ValueError(f"reward_kwargs of {self.source!r}: {error}; it takes {signature}") from error

    def load(self, device: str | None = None) -> Callable:
        """Return the reward ready to call; a class is built with `kwargs`, and with the device if it takes one.

        Raises:
            ValueError: as `check`.
        """
        self.check()
        target = resolve(self.source)
        if not inspect.isclass(target):
            return target
        takes_device = "device" in inspect.signature(target).parameters
        return target(**({"device": device} if takes_device else {}) | self.kwargs)


def parse_rewards(config: RewardConfig, weights: Sequence[float] | None = None) -> list[RewardSpec]:
    """Return the rewards that the settings name, checked, before any model is loaded.

    Settings for a reward that `reward_funcs` leaves out this time are accepted in `reward_kwargs` and
    `reward_transforms`, if there is such a reward.

    Args:
        config: `reward_funcs`, and the settings of each.
        weights: `reward_weights`, in the order of `reward_funcs`; default 1 each.

    Raises:
        ValueError: an unknown reward or keyword argument, two rewards of one name, another number of weights than
            rewards, a gate of a reward that is not among `reward_funcs`, a gain gate of a text reward, or a threshold
            that is no number; the message starts with the key.
    """
    weights = weights or [1.0] * len(config.reward_funcs)
    if len(weights) != len(config.reward_funcs):
        raise ValueError(f"reward_weights: {len(weights)} weights for {len(config.reward_funcs)} reward_funcs")
    names = [source.rsplit(":", 1)[-1] for source in config.reward_funcs]
    if len(set(names)) < len(names):
        raise ValueError(f"reward_funcs: two rewards have the same name: {', '.join(names)}")

    def of_reward(setting: str, source: str) -> Any:
        """Return the reward's entry in the setting, written by its source or by its name; None if it has none."""
        value = getattr(config, setting) or {}
        return value.get(source, value.get(source.rsplit(":", 1)[-1]))

    for setting in ("reward_kwargs", "reward_transforms"):
        for source in getattr(config, setting) or {}:
            if source not in names:
                try:
                    resolve(source)
                except ValueError as error:
                    raise ValueError(f"{setting}: {error}") from error
    for setting in ("reward_gates", "gain_gates"):
        for source, threshold in (getattr(config, setting) or {}).items():
            if source.rsplit(":", 1)[-1] not in names:
                raise ValueError(
                    f"{setting}: {source!r} is not among reward_funcs ({', '.join(names)}): add it there, with "
                    "weight 0 if it should be a gate and nothing else"
                )
            if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not math.isfinite(threshold):
                raise ValueError(f"{setting}: {source} is {threshold!r}; it must be a number, such as 0.28")
    specs = [
        RewardSpec(
            source,
            weight,
            dict(of_reward("reward_kwargs", source) or {}),
            of_reward("reward_transforms", source),
            of_reward("reward_gates", source),
            of_reward("gain_gates", source),
        )
        for source, weight in zip(config.reward_funcs, weights, strict=True)
    ]
    for spec in specs:
        spec.check()
        if spec.gain_gate is not None and not spec.looks_at_images:
            raise ValueError(f"gain_gates: {spec.name!r} looks at no image, so it has no gain; use reward_gates")
    return specs


def check_image_count(specs: Sequence[RewardSpec], **images_per_prompt: int) -> None:
    """Raise a ValueError if a setting (its name and value) renders too few images for a reward that compares them."""
    for spec in specs:
        for setting, count in images_per_prompt.items():
            if count < spec.least_images:
                raise ValueError(
                    f"{setting} is {count}, but the reward {spec.source!r} compares the images of a prompt: set it "
                    f"to {spec.least_images} or more"
                )


class TextReward:
    """A text reward that never raises: it gives None to each rewrite, and remembers the error.

    TRL gathers the rewards of all ranks; an exception on one rank would leave the others waiting.

    Args:
        spec: of the reward.
        timeout: seconds that a user's reward may take for a call.

    Attributes:
        error: of the last call, with the reward's name; None if it went well.
    """

    def __init__(self, spec: RewardSpec, timeout: float = 900):
        self.__name__ = spec.name
        self._is_users, self._timeout = spec.is_users, timeout
        self.error: str | None = None
        self._function = spec.load()

    def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        """Return a score, or None, for each completion; keyword arguments as TRL gives them to a reward."""
        self.error = None
        try:
            if self._is_users:
                scores = call_guarded(self._call, self._timeout, completions=completions, **columns)
            else:
                scores = self._call(completions=completions, **columns)
            scores = [None if score is None else float(score) for score in scores]
        except Exception as error:
            self.error = f"reward {self.__name__!r} failed: {type(error).__name__}: {error}"
            return [None] * len(completions)
        if len(scores) != len(completions):
            self.error = f"reward {self.__name__!r} returned {len(scores)} scores for {len(completions)} rewrites"
            return [None] * len(completions)
        scores = [score if score is not None and math.isfinite(score) else None for score in scores]
        if scores and not any(score is not None for score in scores):
            self.error = f"reward {self.__name__!r} gave None or NaN to each of {len(scores)} rewrites"
        return scores

    def _call(self, **arguments: Any) -> list:
        scores = self._function(**arguments)
        return list(asyncio.run(scores) if inspect.isawaitable(scores) else scores)


def load_text_rewards(specs: Sequence[RewardSpec], timeout: float = 900) -> dict[str, TextReward]:
    """Return the text rewards among the specs by name, whole on each rank; the worker loads the image rewards.

    Args:
        specs: of all rewards.
        timeout: as for `TextReward`.
    """
    with whole_on_each_rank():
        return {spec.name: TextReward(spec, timeout) for spec in specs if not spec.looks_at_images}
