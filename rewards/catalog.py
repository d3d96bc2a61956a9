"""The rewards in words, from the docstrings at the top of their files."""

import inspect
import sys

from brushup.rewards.registry import REWARDS, RewardSpec, resolve


def description(name: str) -> str:
    """Return the docstring of the reward's file, without the name that it starts with."""
    return inspect.getdoc(sys.modules[resolve(name).__module__]).split(": ", 1)[1]


def kind(name: str) -> str:
    """Return `image` or `text`: what the reward looks at."""
    return "image" if RewardSpec(name).looks_at_images else "text"


def arguments(name: str) -> list[str]:
    """Return the arguments that `reward_kwargs` may hold for the reward, each as `argument=default`."""
    target = resolve(name)
    parameters = inspect.signature(target).parameters.values() if inspect.isclass(target) else ()
    return [
        parameter.name if parameter.default is parameter.empty else f"{parameter.name}={parameter.default!r}"
        for parameter in parameters
        if parameter.name != "device"
    ]


def table() -> str:
    """Return a line for each reward: its name, what it looks at, what it measures."""
    width = max(map(len, REWARDS))
    lines = {name: description(name).split("\n\n")[0].replace("\n", " ") for name in REWARDS}
    return "\n".join(f"{name:<{width}}  {kind(name):<5}  {line}" for name, line in lines.items())


def page() -> str:
    """Return docs/rewards.md: the docstring of each reward's file, and its arguments."""
    parts = [
        "# Rewards\n\nMade from the files in [rewards/](../rewards) by `python -m brushup.rewards.catalog > "
        "docs/rewards.md`. An *image* reward is computed where images are rendered, a *text* reward where the policy "
        "trains. `reward_kwargs: {name: {argument: value}}` sets the arguments. How several rewards become "
        "one number: [combining_rewards.md](combining_rewards.md)."
    ]
    for name in REWARDS:
        listed = ", ".join(f"`{argument}`" for argument in arguments(name)) or "none"
        parts.append(f"## {name}\n\n*{kind(name)}*: {description(name)}\n\nArguments: {listed}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201
