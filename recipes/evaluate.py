"""Compares ways of prompting on held-out prompts, from the same seeds, and writes a report to look at.

After training, with the YAML file of the run, about half a minute on a laptop:

    python recipes/evaluate.py --config recipes/tiny_cpu.yaml

The arms are `original` (the user's prompt), `static` (the same with what people add by hand), `untrained` (the policy
before training) and `trained`: what lies in the run's `output_dir`, or `--adapter A B`, adapters or models, compared
with each other too. `--validation_prompts` takes other prompts, `--validation_images_per_prompt 4` more seeds a
prompt, `--eval_reward_funcs keyword_retention` rewards that the policy was not trained on, `--worker http://...` a
service. On several GPUs: `accelerate launch` with the same arguments.

It leaves in `output_dir`: `results.json` (see docs/results.md), `report.md` and `report.html`, one file to open in
a browser or to send to somebody.
"""

import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from trl import TrlParser

from brushup.config import EvaluationConfig, RenderConfig
from brushup.console import quiet_libraries, say
from brushup.evaluation.arm import STATIC_SUFFIX, Arm
from brushup.evaluation.compare import compare
from brushup.evaluation.report import write_report
from brushup.evaluation.reward_hacking import held_out_signs
from brushup.evaluation.validation import Validation
from brushup.policy.enhancer import PromptEnhancer
from brushup.prompts.dataset import load_prompts
from brushup.render.originals import DEFAULT_FOLDER
from brushup.render.service.launch import get_worker
from brushup.rewards.combine import Objective, check_rewards
from brushup.rewards.registry import label, load_text_rewards


def main(render: RenderConfig, args: EvaluationConfig) -> None:
    start = time.time()
    state = PartialState()

    # Prompts and rewards
    rows = list(load_prompts(args.validation_prompts, "validation", args.prompt_column, args.skip_bad_rows))
    given = args.reward_weights or [1.0] * len(args.reward_funcs)
    if len(given) != len(args.reward_funcs):
        raise ValueError(f"reward_weights: {len(given)} for {len(args.reward_funcs)} reward_funcs")
    weights = dict(zip(map(label, args.reward_funcs), given, strict=True))
    args.reward_funcs = list(dict.fromkeys([*args.reward_funcs, *args.eval_reward_funcs]))
    for name in args.reward_funcs:
        weights.setdefault(label(name), 0.0)  # looked at, and not part of the total
    check_rewards(args, validation_images_per_prompt=args.validation_images_per_prompt)
    objective = Objective.from_config(args, list(weights.values()))

    # Worker: draws and scores, in this process or in a service
    render.originals_cache = render.originals_cache or str(DEFAULT_FOLDER)
    worker = get_worker(render, args)
    validation = Validation(rows, worker, load_text_rewards(args), objective, args, pictures_kept=len(rows))

    # Arms
    arms: dict[str, Arm] = {}
    costs: dict[str, dict[str, float]] = {}

    def draw(name: str, policy: str | None = None, suffix: str = "") -> None:
        began, drawn = time.time(), worker.images_drawn
        if policy:
            enhancer = PromptEnhancer.from_pretrained(policy, device=str(state.device), dtype=args.dtype)
            arms[name] = validation.draw_rewrites(validation.rewrite(enhancer))
        elif suffix:
            arms[name] = validation.draw([row["user_prompt"] + suffix for row in validation.share])
        else:
            arms[name] = validation.original
        images = sum(gather_object([worker.images_drawn - drawn]))
        costs[name] = {"seconds": round(time.time() - began, 1), "images_drawn": images}
        reward = validation.summary(arms[name])["reward"]
        say(f"{name:<20} reward {reward:.3f}  {images:>6,} pictures drawn  {costs[name]['seconds']:>6.1f} s")

    say(f"{len(rows):,} prompts, {args.validation_images_per_prompt} picture(s) each, drawn by {worker}\n")
    adapters = args.adapter or [args.output_dir]
    names = [Path(name).name if len(adapters) > 1 else "trained" for name in adapters]
    if len(set(names)) < len(names):
        names = adapters
    draw("original")
    draw("static", suffix=STATIC_SUFFIX)
    draw("untrained", args.model_name_or_path)
    for name, adapter in zip(names, adapters, strict=True):
        draw(name, adapter)

    # Report
    if state.is_main_process:
        results = compare(arms, validation.measures)
        for name, cost in costs.items():
            results["arms"][name] |= cost
        results["seconds"] = round(time.time() - start, 1)
        results["images_drawn"] = sum(cost["images_drawn"] for cost in costs.values())
        monitors = [name for name, weight in weights.items() if not weight]
        before = {"untrained": arms["untrained"]}
        results["reward_hacking"] = {
            "held_out": [
                str(sign)
                for name in names
                for sign in held_out_signs(before, name, arms[name], monitors, worker.token_limits)
            ]
        }
        results["evaluation"] = {
            "prompts": args.validation_prompts,
            "policies": {"untrained": args.model_name_or_path} | dict(zip(names, adapters, strict=True)),
            "weights": weights,
            **{name: args.by_reward(name) for name in ("reward_transforms", "reward_gates", "gain_gates")},
            "images_per_prompt": args.validation_images_per_prompt,
            "seed": args.seed,
            "success_threshold": args.success_threshold,
            **render.picture_settings(),
        }
        say("\n" + write_report(Path(args.output_dir), results, arms, rows))


if __name__ == "__main__":
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    parser = TrlParser((RenderConfig, EvaluationConfig))
    # The YAML file also has what only training reads; a flag that nobody knows is an error.
    *configs, _, unknown = parser.parse_args_and_config(return_remaining_strings=True, separate_remaining_strings=True)
    if unknown:
        parser.error(f"unknown arguments: {' '.join(unknown)}")
    main(*configs)
