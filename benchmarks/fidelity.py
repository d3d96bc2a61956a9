"""How cheaply can an image be rendered, and still rank the rewrites of a prompt as the full image does?

    python benchmarks/fidelity.py --config recipes/tiny_cpu.yaml --output fidelity.json
    python benchmarks/fidelity.py --config RUN.yaml --variants '{"num_inference_steps": 8, "guidance_scale": 1.0}'

GRPO only compares the rewrites of one prompt with each other. The policy of a run's YAML file samples rewrites of
held-out prompts. They are rendered in full (`render_kwargs` with `eval_render_kwargs`, or with `--full`), and by each
variant from the same seeds, and scored by the image rewards with their weights. Each variant is compared with the full
images:

    rank       Spearman's correlation of the rewards within a prompt, the mean over the prompts
    turned     share of the pairs of rewrites whose order is turned round (a tie: half), the mean over the prompts
    images/s   rendered, not scored; of processor time on a CPU, because other work does not count in it
    signal/s   images/s x rank squared, the share of the variance of one ranking that the other one explains

Intervals are 95 % bootstrap intervals over the prompts. The row "another seed" has full images from other seeds: what
ranks like it loses no more than the noise of one image. A variant is JSON: arguments of the pipeline's call; keys of
the YAML file (`generator`, `generator_lora`, `scheduler`, ...), for a distilled generator; and `cache`, e.g.
{"cache": {"TaylorSeerCacheConfig": {"cache_interval": 2}}}, one of diffusers' caches of steps, for denoisers that have
`enable_cache`. (One whose decision depends on the values, such as FirstBlockCacheConfig, makes an image depend on the
others in its batch.)
"""

import argparse
import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from scipy.stats import spearmanr
from trl import TrlParser

from brushup.config import PromptConfig, RenderConfig
from brushup.console import quiet_libraries
from brushup.evaluation.compare import paired_difference
from brushup.flags import read_settings_file
from brushup.policy.enhancer import Enhancement, PromptEnhancer
from brushup.prompts.dataset import load_prompts
from brushup.recipe_config import EvaluationConfig
from brushup.render.job import RenderJob, columns_of, paired_seeds
from brushup.render.pipeline import arguments_of
from brushup.render.renderer import Renderer
from brushup.render.worker import scores_of
from brushup.rewards.registry import columns_read, parse_rewards


KEYS_OF_GENERATOR = {field.name for field in dataclasses.fields(RenderConfig)}


def write_groups(
    args: EvaluationConfig, prompts: list[str], count: int, temperature: float
) -> list[list[Enhancement]]:
    """Return the different rewrites of each prompt, sampled; prompts with fewer than three are left out."""
    enhancer = PromptEnhancer.from_pretrained(args.adapter[0] if args.adapter else args.model_name_or_path)
    enhancer.ask_as(args)
    written = enhancer.enhance(
        prompts, n=count, max_new_tokens=args.max_completion_length, temperature=temperature, seed=args.seed
    )
    groups = [[rewrite for rewrite in rewrites if not rewrite.malformed] for rewrites in written]
    different = [list({rewrite.prompt: rewrite for rewrite in group}.values()) for group in groups]
    return [group for group in different if len(group) > 2]


def jobs_of(groups: list[list[Enhancement]], columns: dict[str, str], salt: str, seed: int) -> list[list[RenderJob]]:
    """Return the jobs of each group, whose rewrites share a seed, as in training.

    Args:
        columns: of each user prompt, the columns that rewards read, as JSON.
    """

    def job(rewrite: Enhancement) -> RenderJob:
        asked = rewrite.user_prompt
        return RenderJob(rewrite.prompt, asked, *paired_seeds(seed, salt, asked, 1), columns=columns[asked])

    return [list(map(job, group)) for group in groups]


def default_variants(renderer: Renderer) -> list[dict[str, Any]]:
    """Return half and a quarter of the steps with and without guidance, half the size, and cached steps."""
    takes = {name: renderer.render_kwargs.get(name) for name in arguments_of(renderer.pipeline.__call__)}
    steps = takes.get("num_inference_steps") or 28
    fewer = [{"num_inference_steps": max(1, steps // part)} for part in (2, 4)]
    variants = [*fewer]
    if "guidance_scale" in takes and takes["guidance_scale"] != 1:
        variants += [{**less, "guidance_scale": 1.0} for less in ({}, *fewer)]
    if takes.get("height") and takes.get("width"):
        variants.append({"height": takes["height"] // 2, "width": takes["width"] // 2})
    if parts_with_cache(renderer):
        variants.append({"cache": {"TaylorSeerCacheConfig": {"cache_interval": 2}}})
    return variants


def parts_with_cache(renderer: Renderer) -> list[torch.nn.Module]:
    """Return the denoisers that can cache steps."""
    return [part for part in renderer.pipeline.components.values() if hasattr(part, "enable_cache")]


@contextlib.contextmanager
def variant_of(full: Renderer, render: RenderConfig, variant: dict[str, Any]) -> Iterator[Renderer]:
    """Yield the renderer of a variant; raise a ValueError if the generator does not take it."""
    variant = dict(variant)
    cache = variant.pop("cache", {})
    settings = {name: variant.pop(name) for name in list(variant) if name in KEYS_OF_GENERATOR}
    if settings:  # another generator, or one that is loaded otherwise
        full = Renderer(dataclasses.replace(render, **{"render_kwargs": full.render_kwargs} | settings))
    renderer = full.with_kwargs("variants", variant)
    denoisers = parts_with_cache(renderer) if cache else []
    if cache and not denoisers:
        raise ValueError(f"cache: {type(renderer.pipeline).__name__} has no denoiser with `enable_cache`")
    for denoiser in denoisers:
        for name, arguments in cache.items():
            denoiser.enable_cache(getattr(diffusers, name)(**arguments))
    try:
        yield renderer
    finally:
        for denoiser in denoisers:
            denoiser.disable_cache()


def measure(renderer: Renderer, rewards: list[tuple], groups: list[list[RenderJob]]) -> tuple[list[np.ndarray], float]:
    """Return the weighted reward of each rewrite, (rewrites,) for each group, and the images rendered a second.

    Args:
        renderer: renders.
        rewards: (weight, image reward).
        groups: the jobs of each prompt.
    """
    jobs = [job for group in groups for job in group]
    renderer.draw([(job.prompt, job.seed + 1) for job in jobs[: renderer.batch_size]])  # the first batch is slower
    clock = time.perf_counter if renderer.device.startswith("cuda") else time.process_time
    start = clock()
    rendered = renderer.draw([(job.prompt, job.seed) for job in jobs])
    seconds = clock() - start
    if failed := [item.reason for item in rendered if not hasattr(item, "pixels")]:
        raise ValueError(f"{len(failed)} of {len(jobs)} images failed: {failed[0]}")
    totals = np.zeros(len(jobs))
    for weight, reward in rewards:
        images = [item.pixels if getattr(reward, "takes_pixels", False) else item.image for item in rendered]
        scores = [score["score"] if isinstance(score, dict) else score for score in scores_of(reward, images, jobs)]
        totals += weight * np.array(scores, dtype=float)
    ends = np.cumsum([len(group) for group in groups])[:-1]
    return np.split(totals, ends), len(jobs) / seconds


def compare(full: list[np.ndarray], other: list[np.ndarray], rate: float) -> dict[str, Any]:
    """Return `rank`, `turned` (each with `mean` and `ci95`), `images_per_second` and `signal_per_second`."""
    ranks, turned = [], []
    for wanted, found in zip(full, other, strict=True):
        if not np.ptp(wanted):
            continue  # the full images rank nothing
        order = np.sign(np.subtract.outer(wanted, wanted))
        agreement = order * np.sign(np.subtract.outer(found, found))
        turned.append(float((1 - agreement[order != 0].mean()) / 2))
        ranks.append(float(spearmanr(wanted, found).statistic) if np.ptp(found) else 0.0)
    nothing = [0.0] * len(ranks)
    rank = paired_difference(ranks, nothing)
    return {
        "rank": rank,
        "turned": paired_difference(turned, nothing),
        "images_per_second": rate,
        "signal_per_second": rate * max(rank["mean"], 0.0) ** 2,
    }


def show(name: str, row: dict[str, Any]) -> None:
    """Print a row of the table."""
    cells = [
        f"{row[key]['mean']:.2f} ({row[key]['ci95'][0]:.2f}-{row[key]['ci95'][1]:.2f})" for key in ("rank", "turned")
    ]
    rates = [f"{row[key]:.3g}" for key in ("images_per_second", "signal_per_second")]
    print(f"| {' | '.join([name, *cells, *rates])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="a run's YAML file")
    parser.add_argument("--policy", help="an adapter or a model that writes; default: the policy before training")
    parser.add_argument("--full", type=json.loads, default={}, help="JSON: arguments of the call for the full images")
    parser.add_argument("--variants", type=json.loads, nargs="+", help="JSON: see above; default: derived from --full")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--rewrites", type=int, default=8, help="of each prompt; equal ones count once")
    parser.add_argument("--output", help="a JSON file")
    arguments = parser.parse_args()
    quiet_libraries()

    settings = read_settings_file(arguments.config)
    if arguments.policy:
        settings["adapter"] = [arguments.policy]
    parse = TrlParser((PromptConfig, RenderConfig, EvaluationConfig)).parse_dict
    held_out, render, args = parse(settings, allow_extra_keys=True)
    specs = parse_rewards(args, args.reward_weights)
    rows = load_prompts(
        held_out.validation_prompts, "validation", held_out.prompt_column, max_samples=arguments.prompts
    )
    rewrites = write_groups(args, rows["user_prompt"], arguments.rewrites, settings.get("temperature", 1.0))
    if len(rewrites) < 2:
        parser.error(f"only {len(rewrites)} of {len(rows)} prompts have three different rewrites: raise --rewrites")
    full = Renderer(render).with_kwargs("full", render.eval_render_kwargs | arguments.full)
    rewards = [(spec.weight, spec.load(full.device)) for spec in specs if spec.looks_at_images and spec.weight]
    read = [name for _, reward in rewards for name in columns_read(reward)]
    columns = {row["user_prompt"]: columns_of(row, read) for row in rows}
    groups, from_other_seeds = (jobs_of(rewrites, columns, salt, args.seed) for salt in ("fidelity", "another seed"))
    print(f"{sum(map(len, groups))} rewrites of {len(groups)} prompts; in full: {json.dumps(full.render_kwargs)}\n")
    print("| variant | rank | turned | images/s | signal/s |\n| --- | --- | --- | --- | --- |")
    wanted, _ = measure(full, rewards, groups)
    results = {"another seed": compare(wanted, *measure(full, rewards, from_other_seeds))}
    show("another seed", results["another seed"])
    for variant in arguments.variants or default_variants(full):
        name = json.dumps(variant)
        try:
            with variant_of(full, render, variant) as renderer:
                results[name] = compare(wanted, *measure(renderer, rewards, groups))
        except ValueError as error:
            print(f"| {name} | left out: {error} | | | |")
        else:
            show(name, results[name])
    if arguments.output:
        device = (
            torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
        )
        found = {"device": device, "full": full.render_kwargs, "groups": len(groups), "variants": results}
        Path(arguments.output).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
