"""Compares ways of prompting on held-out prompts, from the same seeds, and writes a report to look at.

After training, with the YAML file of the run, less than three minutes on two CPU cores:

    python recipes/evaluate.py --config recipes/tiny_cpu.yaml

The arms are `original` (the user's prompt), `static` (the same with what people add by hand), `repeat` (the same until
it is as long as the trained rewrite), `untrained` (the policy before training), `trained`: what lies in the run's
`output_dir`, or `--adapter A B`, adapters or models, compared with each other too; `best_of_8 untrained` and
`best_of_8 trained` (of `--best_of 8` rewrites the one with the highest reward); `oracle trained` (the better of
`original` and `trained`); with `--turns 2` `revised trained`, whose policy has looked at the image of its rewrite, and
`best_turn trained`, the better of both by the reward. docs/results.md says more.

`--validation_prompts` takes other prompts, `--validation_images_per_prompt 4` more seeds a prompt,
`--eval_reward_funcs keyword_retention` rewards that the policy was not trained on, `--worker http://...` a service.
`--transfer_generator stabilityai/sdxl-turbo` renders the same prompts with another generator, too.
`--keep_images true` keeps all images in `output_dir/evaluation_images`, and `--images_from` that folder scores them
again without a generator. On several GPUs: `accelerate launch` with the same arguments.

It leaves `results.json` (see docs/results.md) and `report.html`, one file to open or to send, in `output_dir`.
"""

from brushup.flags import answer_at_once, parse


if __name__ == "__main__":  # before the imports below, which take ten seconds
    answer_at_once(__doc__, "PromptConfig", "RenderConfig", "EvaluationConfig")

import dataclasses
import gc
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from brushup.common import cpu_only
from brushup.config import PromptConfig, RenderConfig
from brushup.console import progress, quiet_libraries, say, serve_command
from brushup.evaluation.arm import STATIC_SUFFIX, Arm, repeat_to_length
from brushup.evaluation.compare import compare
from brushup.evaluation.report import short_report, write_report
from brushup.evaluation.results import Results
from brushup.evaluation.reward_hacking import held_out_signs
from brushup.evaluation.validation import Validation
from brushup.policy.enhancer import PromptEnhancer
from brushup.policy.load import load_processor
from brushup.prompts.dataset import load_prompts
from brushup.recipe_config import EvaluationConfig
from brushup.render.job import Worker
from brushup.render.kept_images import KeepingWorker, load_kept_images
from brushup.render.service.launch import get_worker
from brushup.render.worker import load_worker
from brushup.rewards.combine import Objective
from brushup.rewards.registry import RewardSpec, TextReward, check_image_count, load_text_rewards, parse_rewards


OTHER_ARMS = ("original", "static", "repeat", "untrained")  # than those of the trained policies


def main(prompts: PromptConfig, render: RenderConfig, args: EvaluationConfig) -> None:
    start = time.time()
    PartialState(cpu=cpu_only())

    # Prompts and rewards are checked before any model is loaded.
    rows = list(load_prompts(prompts.validation_prompts, "validation", prompts.prompt_column, prompts.skip_bad_rows))
    rewards = parse_all_rewards(args)
    if args.transfer_generator and render.worker != "local":
        raise ValueError(
            f"transfer_generator: {args.transfer_generator} needs worker: local, which loads it after the first "
            f"generator; a service (worker: {render.worker}) keeps the generator that it was started with"
        )
    check_image_count(rewards, validation_images_per_prompt=args.validation_images_per_prompt)
    policies = {"untrained": args.model_name_or_path} | name_policies(args.adapter or [args.output_dir])
    for policy in policies.values():
        load_processor(policy)  # one that is not there shows now, and not after hours

    # Worker: renders and scores, in this process or in a service
    output = Path(args.output_dir)
    with progress("loading the generator and the rewards"):
        if args.images_from:
            worker = load_kept_images(Path(args.images_from), render, rewards)
        else:
            worker = get_worker(render, rewards, output, args.ddp_timeout, serve_command())
    if args.keep_images:
        worker = KeepingWorker(worker, output / "evaluation_images", render)
    text_rewards = load_text_rewards(rewards, render.worker_timeout)
    objective = Objective.from_specs(rewards)
    validation = Validation(rows, worker, text_rewards, objective, args, images_kept=len(rows))

    # Arms
    say(f"{len(rows):,} prompts, {args.validation_images_per_prompt} image(s) each, rendered by {worker}\n")
    arms, costs = render_arms(policies, validation, worker, args)
    trained = [name for name in policies if name != "untrained"]
    results = Results({})
    if PartialState().is_main_process:
        with progress("comparing"):
            results = compare_arms(arms, costs, validation, trained, output)
        results.evaluation = evaluation_settings(prompts, render, args, rewards, policies)
        if args.transfer_generator:  # which may fail
            save(output, results, arms, rows, start)

    # Another generator, once the first one has left its memory
    if args.transfer_generator:
        del worker, validation
        gc.collect()
        torch.cuda.empty_cache()
        results.transfer = transfer(arms, trained, rows, render, rewards, text_rewards, args)
    if PartialState().is_main_process:
        save(output, results, arms, rows, start)
        say(f"\n{short_report(results)}\n\nsaved to {output}/report.html")


def save(output: Path, results: Results, arms: dict[str, Arm], rows: Sequence[dict], start: float) -> None:
    """Write results.json and report.html into the folder; `start` is when the evaluation began, in seconds."""
    results.seconds = round(time.time() - start, 1)
    output.mkdir(parents=True, exist_ok=True)
    results.save(output)
    write_report(output, results, arms, rows)


def parse_all_rewards(args: EvaluationConfig) -> list[RewardSpec]:
    """Return the rewards of the training, and those of `eval_reward_funcs`, which have no weight in the total."""
    weights = args.reward_weights or [1.0] * len(args.reward_funcs)
    if len(weights) != len(args.reward_funcs):
        raise ValueError(f"reward_weights: {len(weights)} weights for {len(args.reward_funcs)} reward_funcs")
    further = [source for source in dict.fromkeys(args.eval_reward_funcs) if source not in args.reward_funcs]
    everything = dataclasses.replace(args, reward_funcs=[*args.reward_funcs, *further])
    return parse_rewards(everything, [*weights, *[0.0] * len(further)])


def name_policies(policies: Sequence[str]) -> dict[str, str]:
    """Return the trained policies by name: `trained`, or their folders' names if they are several and differ."""
    names = [Path(policy).name for policy in policies] if len(policies) > 1 else ["trained"]
    if len({*OTHER_ARMS, *names}) < len(OTHER_ARMS) + len(names):
        names = policies
    return dict(zip(names, policies, strict=True))


def render_arms(
    policies: dict[str, str], validation: Validation, worker: Worker, args: EvaluationConfig
) -> tuple[dict[str, Arm], dict[str, dict[str, float]]]:
    """Return the arms, and the `seconds` and `images_drawn` of each, by name; say the mean reward of each meanwhile.

    Args:
        policies, validation, args: as for `ways_of_prompting`.
        worker: that renders for the validation.
    """
    arms: dict[str, Arm] = {}
    costs: dict[str, dict[str, float]] = {}
    began, before = time.time(), worker.images_drawn
    for name, arm in ways_of_prompting(policies, validation, args):
        images, seconds = sum(gather_object([worker.images_drawn - before])), round(time.time() - began, 1)
        arms[name], costs[name] = arm, {"seconds": seconds, "images_drawn": images}
        reward = validation.summary(arm)["reward"]
        say(f"{name:<20} reward {reward:.3f}  {images:>6,} images rendered  {seconds:>6.1f} s")
        if args.keep_images:
            worker.file_under(name)
        began, before = time.time(), worker.images_drawn
    return {name: arms.pop(name) for name in OTHER_ARMS} | arms, costs


def ways_of_prompting(
    policies: dict[str, str], validation: Validation, args: EvaluationConfig
) -> Iterator[tuple[str, Arm]]:
    """Yield each arm and its name, rendered when it is the arm's turn.

    Args:
        policies: Hub ids or folders by name, `untrained` first.
        validation: renders and scores.
        args: how the policies are asked, as in the run.
    """
    user_prompts = [row["user_prompt"] for row in validation.share]
    yield "original", validation.original
    yield "static", validation.render([user_prompt + STATIC_SUFFIX for user_prompt in user_prompts])
    trained: dict[str, Arm] = {}
    for name, policy in policies.items():
        with progress(f"loading {policy}"):
            enhancer = PromptEnhancer.from_pretrained(policy, device=str(PartialState().device), dtype=args.dtype)
            enhancer.ask_as(args)
        arm = validation.render_rewrites(validation.rewrite(enhancer))
        yield name, arm
        if args.turns > 1:
            revised = validation.render_rewrites(validation.revise(enhancer, arm))
            yield f"revised {name}", revised
            yield f"best_turn {name}", arm.with_better(revised, range(len(validation.rows)))
        if args.best_of > 1:
            samples = validation.rewrite(enhancer, n=args.best_of - 1, temperature=args.temperature)
            yield f"best_of_{args.best_of} {name}", validation.best_of(arm, samples)
        if name != "untrained":
            trained[name] = arm
    repeated = repeat_to_length(validation.original, list(trained.values()))
    yield "repeat", validation.render([repeated[index] for index in validation.indices])
    for name, arm in trained.items():
        yield f"oracle {name}", validation.original.with_better(arm, range(len(validation.rows)))


def transfer(
    arms: dict[str, Arm],
    trained: list[str],
    rows: list[dict],
    render: RenderConfig,
    rewards: Sequence[RewardSpec],
    text_rewards: dict[str, TextReward],
    args: EvaluationConfig,
) -> dict[str, Any]:
    """Return the comparison of the same prompts, rendered by `transfer_generator`, as results.json has it.

    Args:
        arms: of the first generator, by name; the oracles, which have no prompts of their own, are left out.
        trained: the names of the trained policies.
        rows: the held-out prompts.
        render: the settings of the first generator; those of the device and the memory are kept.
        rewards, text_rewards, args: as for the first generator.
    """
    began = time.time()
    other = {"generator": args.transfer_generator, "generator_init_kwargs": args.transfer_init_kwargs}
    other |= {"render_kwargs": args.transfer_render_kwargs}
    other |= dict.fromkeys(("eval_render_kwargs", "scheduler", "scheduler_kwargs", "generator_lora"))
    with progress(f"loading {args.transfer_generator}"):
        worker = load_worker(dataclasses.replace(render, **other), rewards)
    say(f"\nthe same prompts, rendered by {worker}")
    validation = Validation(rows, worker, text_rewards, Objective.from_specs(rewards), args, images_kept=0)
    again = {"original": validation.original}
    for name in arms:
        if name != "original" and not name.startswith("oracle "):
            again[name] = validation.render_again(arms[name])
    images = sum(gather_object([worker.images_drawn]))
    figures = compare(again, validation.measures, trained) if PartialState().is_main_process else {}
    kept = {name: figures[name] for name in ("arms", "differences") if name in figures}
    cost = {"seconds": round(time.time() - began, 1), "images_drawn": images}
    return {"generator": args.transfer_generator, **cost, **kept}


def compare_arms(
    arms: dict[str, Arm], costs: dict[str, dict[str, float]], validation: Validation, trained: list[str], output: Path
) -> Results:
    """Return the comparison, with what training left in results.json: `validation`, `settings`, `reward_hacking`.

    Args:
        arms: by name.
        costs: `seconds` and `images_drawn` of each arm.
        validation: that rendered them.
        trained: the names of the trained policies.
        output: the folder of the training run, or any other.
    """
    before = Results.load(output) if (output / "results.json").is_file() else Results({})
    untrained, monitors = {"untrained": arms["untrained"]}, validation.objective.monitors
    limits = validation.measures.token_limits
    signs = [str(s) for name in trained for s in held_out_signs(untrained, name, arms[name], monitors, limits)]
    results = Results.compare(
        arms,
        validation.measures,
        [*trained, *(name for name in arms if name.startswith("revised "))],
        validation=before.validation,
        images_drawn=sum(cost["images_drawn"] for cost in costs.values()),
        reward_hacking=before.reward_hacking | {"held_out": signs},
        settings=before.settings,
    )
    for name, cost in costs.items():
        is_chosen = name.startswith(("best_of_", "best_turn ", "oracle "))
        results.arms[name] |= cost | {"chosen_by_reward": is_chosen}
    return results


def evaluation_settings(
    prompts: PromptConfig,
    render: RenderConfig,
    args: EvaluationConfig,
    rewards: Sequence[RewardSpec],
    policies: dict[str, str],
) -> dict[str, Any]:
    """Return the settings of this evaluation, for results.json and the report."""
    return {
        "prompts": prompts.validation_prompts,
        "policies": policies,
        "weights": {spec.name: spec.weight for spec in rewards},
        "reward_transforms": args.reward_transforms,
        "reward_gates": args.reward_gates,
        "gain_gates": args.gain_gates,
        "images_per_prompt": args.validation_images_per_prompt,
        "seed": args.seed,
        "success_threshold": args.success_threshold,
        "best_of": args.best_of,
        "temperature": args.temperature,
        "turns": args.turns,
        "transfer_generator": args.transfer_generator,
        "transfer_init_kwargs": args.transfer_init_kwargs,
        "transfer_render_kwargs": args.transfer_render_kwargs,
        **render.image_settings(),
    }


if __name__ == "__main__":
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    main(*parse(PromptConfig, RenderConfig, EvaluationConfig))
