"""What rewards there are, read off their files without importing them (some import heavy libraries)."""

import ast
from pathlib import Path

from brushup.rewards import REWARDS


def _source(name: str) -> tuple[ast.Module, ast.ClassDef | ast.FunctionDef]:
    """The file of the reward and, in it, its class or function."""
    module, attribute = REWARDS[name].split(":")
    tree = ast.parse((Path(__file__).parent / f"{module.rsplit('.', 1)[1]}.py").read_text(encoding="utf-8"))
    found = [node for node in tree.body if getattr(node, "name", None) == attribute]
    return tree, found[0]


def _method(node: ast.ClassDef | ast.FunctionDef, name: str) -> ast.FunctionDef | None:
    if isinstance(node, ast.FunctionDef):
        return node if name == "__call__" else None
    return next((one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == name), None)


def keyword_arguments(name: str) -> dict[str, str]:
    """What `reward_kwargs` may hold for the reward, with the defaults, as written in its file."""
    init = _method(_source(name)[1], "__init__")
    if init is None:
        return {}
    parameters = init.args.args[1:]
    defaults = [ast.unparse(value) for value in init.args.defaults]
    padded = [""] * (len(parameters) - len(defaults)) + defaults
    return {one.arg: value for one, value in zip(parameters, padded, strict=True) if one.arg != "device"}


def looks_at(name: str) -> str:
    """`picture` or `text`: as `brushup.rewards.is_image_reward`."""
    parameters = [one.arg for one in _method(_source(name)[1], "__call__").args.args if one.arg != "self"]
    return "picture" if parameters[0] == "images" else "text"


def in_short(name: str) -> str:
    """The first line of its file, without the name."""
    return ast.get_docstring(_source(name)[0]).split("\n\n")[0].replace("\n", " ").split(": ", 1)[1]


def table() -> str:
    """A line a reward: name, what it looks at, what it measures."""
    width = max(map(len, REWARDS))
    return "\n".join(f"{name:<{width}}  {looks_at(name):<7}  {in_short(name)}" for name in REWARDS)


def page() -> str:
    """docs/rewards.md: what stands at the top of each file, and its keyword arguments."""
    parts = [
        "# Rewards\n\nMade from the files in [rewards/](../rewards) by `python -m brushup.rewards.catalog > "
        "docs/rewards.md`. A *picture* reward is computed where the pictures are drawn, a *text* reward where the "
        "policy trains. `reward_kwargs: {name: {argument: value}}` sets the arguments. How several make one: "
        "[combining_rewards.md](combining_rewards.md)."
    ]
    for name in REWARDS:
        text = ast.get_docstring(_source(name)[0]).split(": ", 1)[1]
        given = [
            f"`{argument}={value}`" if value else f"`{argument}`"
            for argument, value in keyword_arguments(name).items()
        ]
        parts.append(f"## {name}\n\n*{looks_at(name)}*: {text}\n\nArguments: {', '.join(given) or 'none'}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201
