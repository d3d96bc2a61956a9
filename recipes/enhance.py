"""Rewrites prompts from the shell, with a trained adapter or any model.

    python recipes/enhance.py --model runs/tiny_cpu "crimson disk, huge" "a tiny azure ball"
    python recipes/enhance.py --model runs/tiny_cpu --file prompts.txt --format jsonl > rewrites.jsonl
    cat prompts.txt | python recipes/enhance.py --model runs/tiny_cpu
    python recipes/enhance.py --model runs/tiny_cpu "a jet cone" --config recipes/tiny_cpu.yaml --render images
    python recipes/enhance.py --model runs/tiny_cpu "a jet cone" --config recipes/tiny_cpu.yaml --best_of 8

Prompts are arguments, or the lines of a file or of standard input; a .jsonl, .json, .csv, .tsv or .parquet file is
read as in training, with the images in its column `image`. As text, each rewrite is a line; as JSON Lines, an object
with `user_prompt`, `prompt`, `malformed`, `answer` and, with `--render`, `seed` and `images`, the two files. `--render
DIR` renders the user's prompt and each rewrite from the same seed, with the generator of a run's YAML file. `--best_of
N` renders the prompt and N rewrites of it, and the rewards of that file, or those of `--judge`, pick one; JSON Lines
then have `reason` and `candidates`, too. With `--turns 2` the policy looks at the image of its rewrite, the `draft`,
and revises it; with `--judge`, too, a revision must be better than its draft. Notes go to standard error.
"""

import argparse
import math
import sys


RANGES = {
    "n": (1, math.inf),
    "best_of": (1, math.inf),
    "max_new_tokens": (1, math.inf),
    "temperature": (0, math.inf),
    "seed": (0, 2**64 - 1),
}


def parse_arguments() -> argparse.Namespace:
    """Return the arguments; end the program if they do not fit together."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s --model MODEL [options] [prompts ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("prompts", nargs="*", help="the prompts; default: the lines of --file, or of standard input")
    parser.add_argument("--model", required=True, help="adapter or model: Hub id or folder")
    parser.add_argument("--file", help="a text file with a prompt a line, or .jsonl, .json, .csv, .tsv, .parquet")
    parser.add_argument("--prompt_column", default="user_prompt", help="of such a file")
    parser.add_argument("--format", choices=["text", "jsonl"], default="text")
    parser.add_argument("--n", type=int, default=1, help="rewrites of each prompt")
    parser.add_argument("--temperature", type=float, help="default 0, the likeliest rewrite; 0.7 for several")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of the sampling, and of the images")
    parser.add_argument("--image", help="a reference image beside all prompts, for policies that take one")
    parser.add_argument("--device", help="default cuda, else mps, else cpu")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16", "float16", "auto"], help="default bfloat16 on CUDA, else float32"
    )
    parser.add_argument("--render", metavar="DIR", help="render both versions; needs --config")
    parser.add_argument("--best_of", type=int, default=1, help="rewrites to pick the best from; needs --config")
    parser.add_argument(
        "--turns", type=int, choices=[1, 2], default=1, help="2: the policy looks at its draft; needs --config"
    )
    parser.add_argument("--judge", nargs="+", help="image rewards that pick; default: those of the YAML file")
    parser.add_argument("--config", help="a run's YAML file, for its generator and its rewards")
    arguments = parser.parse_args()
    looks = max(arguments.best_of, arguments.turns) > 1
    if bool(arguments.render or looks) != bool(arguments.config):
        parser.error("--config YAML goes with --render DIR, --best_of N or --turns 2: it names the generator")
    if (arguments.judge and not looks) or (looks and arguments.n > 1):
        parser.error("--judge needs --best_of N or --turns 2, which give one rewrite and go without --n")
    if arguments.prompts and arguments.file:
        parser.error("prompts come from the arguments or from --file, not from both")
    for name, (least, most) in RANGES.items():
        value = vars(arguments)[name]
        if value is not None and not least <= value <= most:
            parser.error(
                f"--{name} {value}: must be {f'from {least} to {most}' if most < math.inf else f'>= {least}'}"
            )
    return arguments


if __name__ == "__main__":  # before the imports below, which take ten seconds
    arguments = parse_arguments()

import dataclasses
import itertools
import json
from pathlib import Path

import torch
from PIL import Image
from trl import TrlParser

from brushup.config import RenderConfig, RewardConfig
from brushup.console import progress, quiet_libraries
from brushup.flags import read_settings_file
from brushup.policy.enhancer import Enhancement, PromptEnhancer
from brushup.prompts.dataset import load_prompts
from brushup.prompts.images import load_image
from brushup.prompts.reading import PROMPT_FILES, read_text
from brushup.render.renderer import Renderer, RenderFailure
from brushup.render.worker import LocalWorker, load_worker
from brushup.rewards.combine import Objective
from brushup.rewards.registry import parse_rewards


def read_prompts(arguments: argparse.Namespace) -> tuple[list[str], list[Image.Image | None]]:
    """Return the prompts of the arguments, the file, or standard input, and the image beside each."""
    if arguments.prompts:
        prompts, images = arguments.prompts, [None] * len(arguments.prompts)
    elif arguments.file and Path(arguments.file).suffix in PROMPT_FILES:
        rows = list(load_prompts(arguments.file, "validation", prompt_column=arguments.prompt_column))
        prompts, images = [row["user_prompt"] for row in rows], [row.get("image") for row in rows]
    else:
        text = read_text(arguments.file) if arguments.file else sys.stdin.read()
        prompts = [line.strip() for line in text.splitlines() if line.strip()]
        images = [None] * len(prompts)
    if arguments.image:
        images = [load_image(arguments.image)] * len(prompts)
    return prompts, images


def check_device(name: str) -> None:
    """Raise a ValueError if this machine has no such device."""
    try:
        torch.empty(0, device=name).tolist()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch without CUDA
        raise ValueError(f"--device {name}: this machine has none ({str(error).splitlines()[0]})") from error


def load_configs(path: str) -> tuple[RenderConfig, RewardConfig, list[float] | None]:
    """Return the settings of the generator in a run's YAML file, without `compile_generator`, which takes minutes,
    those of the rewards, and their weights.

    Raises:
        ValueError: the file has no generator, or a setting is wrong; the message names the file.
    """
    settings = read_settings_file(path)
    if "generator" not in settings:
        raise ValueError(f"{path}: there is no key `generator`; take the YAML file of a training run")
    try:
        render, rewards = TrlParser((RenderConfig, RewardConfig)).parse_dict(settings, allow_extra_keys=True)[:2]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    full = render.render_kwargs | render.eval_render_kwargs
    render = dataclasses.replace(render, render_kwargs=full, eval_render_kwargs={}, compile_generator=False)
    return render, rewards, settings.get("reward_weights")


def load_judge(
    render: RenderConfig, config: RewardConfig, weights: list[float] | None, names: list[str] | None
) -> tuple[LocalWorker, Objective]:
    """Return the worker that renders and scores the candidates, and the objective that picks.

    Args:
        config, weights: the rewards of the training.
        names: of the image rewards that pick, with weight 1; default those of the training that look at one image.

    Raises:
        ValueError: there is no such reward.
    """
    if names:
        config, weights = dataclasses.replace(config, reward_funcs=names, reward_gates={}, gain_gates={}), None
    specs = [spec for spec in parse_rewards(config, weights) if spec.looks_at_images and spec.least_images == 1]
    specs = [spec for spec in specs if spec.weight]
    if not specs or (names and len(specs) < len(names)):
        raise ValueError(f"judge: {', '.join(names or config.reward_funcs)}: name rewards that look at one image")
    return load_worker(render, specs), Objective.from_specs(specs)


def render_pairs(
    enhancements: list[Enhancement], render: RenderConfig, folder: Path, seed: int
) -> list[dict[str, str | None]]:
    """Render the user's prompt and the rewrite of each enhancement, and save the images in the folder.

    What a judge has seen is not rendered again.

    Returns:
        For each enhancement its files, by `original` and `rewrite`; None for an image that failed.
    """
    prompts = [prompt for enhancement in enhancements for prompt in (enhancement.user_prompt, enhancement.prompt)]
    seen = {(e.user_prompt, found.prompt): found for e in enhancements for found in e.candidates}
    wanted = [(e.user_prompt, prompt) for e in enhancements for prompt in (e.user_prompt, e.prompt)]
    if set(wanted) <= set(seen):
        judged = [seen[prompts] for prompts in wanted]
        images = iter([found.image or RenderFailure(found.error) for found in judged])
    else:
        with progress("loading the generator"):
            renderer = Renderer(render)
        with progress("rendering", len(set(prompts)), lambda: renderer.images_drawn):
            images = iter(renderer.render([(prompt, seed) for prompt in prompts]))
    pairs: list[dict[str, str | None]] = []
    for number in range(1, len(enhancements) + 1):
        pairs.append({})
        for kind in ("original", "rewrite"):
            image, file = next(images), str(folder / f"{number:04d}_{kind}.png")
            if isinstance(image, RenderFailure):
                print(f"prompt {number}, {kind}: not rendered: {image.reason}", file=sys.stderr)
                file = None
            else:
                image.save(file)
            pairs[-1][kind] = file
    saved = sum(file is not None for pair in pairs for file in pair.values())
    print(f"saved {saved} images: {folder}/0001_original.png, 0001_rewrite.png, ...", file=sys.stderr)
    return pairs


def write_out(
    enhancements: list[Enhancement], images: list[dict[str, str | None]] | None, arguments: argparse.Namespace
) -> None:
    """Print each rewrite, as text or JSON, and what there is to note of it on standard error."""
    for number, enhancement in enumerate(enhancements):
        if enhancement.malformed:
            print(f"malformed answer to {enhancement.user_prompt!r}: the prompt stays as it is", file=sys.stderr)
        if enhancement.reason:
            print(f"{enhancement.user_prompt!r}: picked {enhancement.reason}", file=sys.stderr)
        elif enhancement.draft:
            did = "keeps" if enhancement.prompt == enhancement.draft.prompt else "revises"
            print(
                f"{enhancement.user_prompt!r}: the policy {did} its draft {enhancement.draft.prompt!r}",
                file=sys.stderr,
            )
        elif enhancement.kept:
            print(f"{enhancement.user_prompt!r} is kept: the model has nothing to improve", file=sys.stderr)
        if arguments.format == "text":
            print(enhancement.prompt)
        else:
            row = {name: vars(enhancement)[name] for name in ("user_prompt", "prompt", "malformed", "answer")}
            row |= {"seed": arguments.seed, "images": images[number]} if images else {}
            row |= {"draft": enhancement.draft.prompt} if enhancement.draft else {}
            found = [{"prompt": c.prompt, "scores": c.scores, "error": c.error} for c in enhancement.candidates]
            row |= {"reason": enhancement.reason} if enhancement.reason else {}
            row |= {"candidates": found} if found else {}
            print(json.dumps(row, ensure_ascii=False))


def main(arguments: argparse.Namespace) -> None:
    # All but the models is checked before a model is loaded.
    render, config, weights = load_configs(arguments.config) if arguments.config else (None, None, None)
    try:
        prompts, images_beside = read_prompts(arguments)
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is no UTF-8 text: {error}") from error
    if not prompts:
        raise ValueError("no prompts: give them as arguments, with --file, or on standard input")
    if arguments.device:
        check_device(arguments.device)
    if arguments.render:
        Path(arguments.render).mkdir(parents=True, exist_ok=True)
    with progress(f"loading {arguments.model}"):
        enhancer = PromptEnhancer.from_pretrained(arguments.model, arguments.device, arguments.dtype)
    picking = {}
    if max(arguments.best_of, arguments.turns) > 1:
        with progress("loading the generator and the judge"):
            worker, judge = load_judge(render, config, weights, arguments.judge)
        picking = {"best_of": arguments.best_of, "turns": arguments.turns, "worker": worker}
        picking |= {"judge": judge} if arguments.best_of > 1 or arguments.judge else {}
        if "judge" in picking and not set(judge.names) - set(config.reward_funcs):
            chosen = ", ".join(judge.names)
            print(
                f"{chosen}: rewards of the training alone pick, which flatter it; --judge takes others",
                file=sys.stderr,
            )
    count = len(prompts) * max(arguments.n, arguments.best_of)
    with progress("rewriting", count, lambda: enhancer.answered):
        rewritten = enhancer.enhance(
            prompts,
            arguments.n,
            arguments.max_new_tokens,
            arguments.temperature,
            arguments.seed,
            image=images_beside,
            **picking,
        )
    enhancements = list(itertools.chain.from_iterable(rewritten)) if arguments.n > 1 else rewritten
    images = render_pairs(enhancements, render, Path(arguments.render), arguments.seed) if arguments.render else None
    write_out(enhancements, images, arguments)


if __name__ == "__main__":
    quiet_libraries()
    try:
        main(arguments)
    except (OSError, ValueError) as error:  # no such model, file or prompt
        sys.exit(str(error))
