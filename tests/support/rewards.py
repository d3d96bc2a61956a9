"""Rewards by name, and completions as TRL hands them to text rewards."""

from collections.abc import Callable

from brushup.rewards.registry import RewardSpec


def load_reward(name: str, device: str = "cpu", **kwargs) -> Callable:
    """Load the reward on this device; `kwargs` are its `reward_kwargs`."""
    return RewardSpec(name, kwargs=kwargs).load(device)


def completions(*texts: str) -> list[list[dict]]:
    """Return a completion for each text."""
    return [[{"role": "assistant", "content": text}] for text in texts]
