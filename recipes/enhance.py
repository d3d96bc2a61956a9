"""Rewrites prompts from the shell, with a trained adapter or any model.

    python recipes/enhance.py --model runs/tiny_cpu "crimson disk, huge" "a tiny azure ball"
    python recipes/enhance.py --model runs/tiny_cpu --file prompts.txt --format jsonl > rewrites.jsonl
    cat prompts.txt | python recipes/enhance.py --model runs/tiny_cpu
    python recipes/enhance.py --model runs/tiny_cpu "a jet cone" --config recipes/tiny_cpu.yaml --render images

Prompts are arguments, or the lines of a file or of standard input; a .jsonl, .csv or .parquet file is read as in
training. As text, each rewrite is a line; as JSON Lines, an object with `user_prompt`, `prompt`, `malformed`, `answer`
and, with `--render`, `seed` and `images`, the two files. `--render DIR` renders the user's prompt and each rewrite
from the same seed, with the generator of a run's YAML file. Notes go to standard error.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import yaml
from PIL import Image
from trl import TrlParser

from brushup.config import RenderConfig
from brushup.console import quiet_libraries
from brushup.policy.enhancer import Enhancement, PromptEnhancer
from brushup.prompts.dataset import load_prompts
from brushup.render.renderer import Renderer, RenderFailure


def read_prompts(arguments: argparse.Namespace) -> list[str]:
    """Return the prompts of the arguments, the file, or standard input; empty lines are skipped."""
    if arguments.prompts:
        return arguments.prompts
    if arguments.file and Path(arguments.file).suffix in (".jsonl", ".csv", ".parquet"):
        return list(load_prompts(arguments.file)["user_prompt"])
    text = Path(arguments.file).read_text(encoding="utf-8") if arguments.file else sys.stdin.read()
    return [line.strip() for line in text.splitlines() if line.strip()]


def render_pairs(
    enhancements: list[Enhancement], render: RenderConfig, folder: Path, seed: int
) -> list[dict[str, str | None]]:
    """Render the user's prompt and the rewrite of each enhancement, and save the images in the folder.

    Returns:
        For each enhancement its files, by `original` and `rewrite`; None for an image that failed.
    """
    prompts = [prompt for enhancement in enhancements for prompt in (enhancement.user_prompt, enhancement.prompt)]
    images = iter(Renderer(render).render([(prompt, seed) for prompt in prompts]))
    folder.mkdir(parents=True, exist_ok=True)
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
    return pairs


def main(arguments: argparse.Namespace, render: RenderConfig | None) -> None:
    prompts = read_prompts(arguments)
    if not prompts:
        sys.exit("no prompts: give them as arguments, with --file, or on standard input")
    enhancer = PromptEnhancer.from_pretrained(arguments.model, arguments.device, arguments.dtype)
    rewritten = enhancer.enhance(
        prompts,
        arguments.n,
        arguments.max_new_tokens,
        arguments.temperature,
        arguments.seed,
        image=[Image.open(arguments.image).convert("RGB")] * len(prompts) if arguments.image else None,
    )
    enhancements = list(itertools.chain.from_iterable(rewritten)) if arguments.n > 1 else rewritten
    images = render_pairs(enhancements, render, Path(arguments.render), arguments.seed) if render else None
    for number, enhancement in enumerate(enhancements):
        if enhancement.malformed:
            print(f"malformed answer to {enhancement.user_prompt!r}: the prompt stays as it is", file=sys.stderr)
        if arguments.format == "text":
            print(enhancement.prompt)
        else:
            row = vars(enhancement) | ({"seed": arguments.seed, "images": images[number]} if images else {})
            print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    quiet_libraries()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", help="the prompts; default: the lines of --file, or of standard input")
    parser.add_argument("--model", required=True, help="adapter or model: Hub id or folder")
    parser.add_argument("--file", help="a text file with a prompt a line, or .jsonl, .csv, .parquet")
    parser.add_argument("--format", choices=["text", "jsonl"], default="text")
    parser.add_argument("--n", type=int, default=1, help="rewrites of each prompt")
    parser.add_argument("--temperature", type=float, help="default 0, the likeliest rewrite; 0.7 for several")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of the sampling, and of the images")
    parser.add_argument("--image", help="a reference image, for policies that take one")
    parser.add_argument("--device", help="default cuda, else mps, else cpu")
    parser.add_argument("--dtype", help="default bfloat16 on CUDA, else float32")
    parser.add_argument("--render", metavar="DIR", help="render both versions; needs --config")
    parser.add_argument("--config", help="a run's YAML file, for its generator")
    arguments = parser.parse_args()
    if bool(arguments.render) != bool(arguments.config):
        parser.error("--render DIR and --config YAML go together: the YAML file names the generator")
    render = None
    if arguments.config:
        settings = yaml.safe_load(Path(arguments.config).read_text())
        (render,) = TrlParser(RenderConfig).parse_dict(settings, allow_extra_keys=True)
    try:
        main(arguments, render)
    except (OSError, ValueError) as error:  # no such model, file or prompt
        sys.exit(f"{type(error).__name__}: {error}")
