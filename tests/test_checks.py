"""Every setting is checked, alike from YAML, flags and programs, before a model is loaded; the key is named."""

import dataclasses
import re

import pytest
from trl import ModelConfig

from brushup.checks import RANGES, check_settings
from brushup.common import USE_CPU, default_device
from brushup.config import DataConfig, PromptEnhancerConfig, RenderConfig
from brushup.recipe_config import EvaluationConfig, ServeConfig


CLASSES = (PromptEnhancerConfig, RenderConfig, DataConfig, ModelConfig, ServeConfig, EvaluationConfig)


def checked(**settings):
    """Return the settings as `check_settings` leaves them, in the first class that has them all."""
    config_class = next(c for c in CLASSES if settings.keys() <= c.__dataclass_fields__.keys())
    config = object.__new__(config_class)
    for field in dataclasses.fields(config_class):
        known = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        setattr(config, field.name, settings.get(field.name, "text" if known is dataclasses.MISSING else known))
    check_settings(config)
    return {name: getattr(config, name) for name in settings}


@pytest.mark.parametrize(
    ("given", "becomes"),
    [
        ({"reward_funcs": "clip"}, ["clip"]),  # as the flag does
        ({"reward_weights": 1}, [1.0]),
        ({"generator_memory": "vae_slicing"}, ["vae_slicing"]),
        ({"lora_target_modules": "q_proj"}, ["q_proj"]),
        ({"report_to": "wandb"}, "wandb"),  # TRL takes both
        ({"learning_rate": "1e-5"}, 1e-5),  # YAML reads it as a text
        ({"max_completion_length": "64"}, 64),
        ({"num_generations": 4.0}, 4),
        ({"bf16": "no"}, False),
        ({"eval_strategy": False}, "no"),  # YAML reads `no` as false
        ({"scale_rewards": False}, False),
        ({"resume_from_checkpoint": True}, True),
        ({"max_steps": -1}, -1),
        ({"eval_steps": 0.5}, 0.5),
    ],
)
def test_a_value_becomes_its_type(given, becomes):
    assert list(checked(**given).values()) == [becomes]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"reward_funcs": [1]}, r"reward_funcs: \[1\] is no list of texts"),
        ({"reward_weights": [1.0, float("nan")]}, r"reward_weights: nan is not allowed"),
        ({"temperature": 0}, r"temperature: 0.0 is not allowed; it must be in \(0, inf\)"),
        ({"temperature": float("inf")}, "temperature: inf is not allowed"),
        ({"max_staleness": 2}, "max_staleness: 2 is none of 0, 1"),
        ({"max_steps": 0}, "max_steps: 0 is not allowed; it must be at least 1, or -1"),
        ({"num_generations": True}, "num_generations: True is no whole number"),
        ({"num_generations": 2.5}, "num_generations: 2.5 is no whole number"),
        ({"learning_rate": "fast"}, "learning_rate: 'fast' is no number"),
        ({"eval_strategy": "stepz"}, "eval_strategy: 'stepz' is none of no, steps, epoch"),
        ({"bf16": "maybe"}, "bf16: 'maybe' is no true or false"),
        ({"loss_type": 3}, "loss_type: 3 is no text"),
        ({"reward_kwargs": ["a"]}, r"reward_kwargs: \['a'\] is no mapping"),
        ({"render_batch_size": "auto"}, "render_batch_size: 'auto' is no whole number"),
        ({"render_batch_size": True}, "render_batch_size: True is no whole number"),
        ({"balance_by": "colour"}, "balance_by: 'colour' is none of category, difficulty"),
        ({"port": 99999}, r"port: 99999 is not allowed; it must be in \[0, 65535\]"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(given, says):
    with pytest.raises(ValueError, match=says):
        checked(**given)


@pytest.mark.parametrize("name", RANGES)
def test_each_range_holds(name):
    """Its setting exists, the default is in it, and a value below it is refused."""
    with pytest.raises(ValueError, match=rf"{name}: .* is not allowed; it must be in {re.escape(RANGES[name])}"):
        checked(**{name: -1})


def test_a_mapping_that_is_none_is_named():
    with pytest.raises(ValueError, match="render_kwargs: 'a: b' is no mapping"):
        RenderConfig("folder", render_kwargs="a: b")


@pytest.mark.parametrize("told", ["accelerate", "use_cpu"])
def test_the_gpu_that_accelerate_was_told_to_leave_alone(monkeypatch, told):
    """With a GPU in the machine: the policy, the renderer and the scorers stay on the CPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setenv("ACCELERATE_USE_CPU", str(told == "accelerate"))
    monkeypatch.setenv(USE_CPU, "False")  # set anew below
    args = PromptEnhancerConfig(bf16=False, use_cpu=told == "use_cpu")
    assert args.use_cpu and args.device.type == "cpu"
    assert RenderConfig("folder").device == default_device() == "cpu"
    for variable in ("ACCELERATE_USE_CPU", USE_CPU):
        monkeypatch.setenv(variable, "False")
    assert (
        RenderConfig("folder").device == "cuda" and RenderConfig("folder", render_device="cuda:1").device == "cuda:1"
    )
