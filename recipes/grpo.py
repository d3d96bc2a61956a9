"""Trains a policy with GRPO to rewrite prompts, and shows before and after on held-out prompts.

On a laptop, in about two minutes (real models: recipes/qwen2vl_2b_sd3_1gpu.yaml):

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo.py --config recipes/tiny_cpu.yaml

Each YAML key is also a flag: `--max_steps 120 --reward_funcs clip keyword_retention --reward_weights 1.0 0.2`.
`--list_rewards` prints what rewards there are (all about them: docs/rewards.md).
`--dry_run true` loads everything, measures a step, says what the run will take, and ends.
`--push_to_hub true --hub_model_id me/name` publishes what was trained (later: recipes/publish.py).
It leaves in `output_dir`: the adapter (or model), checkpoints, `validation_<step>.json`, `results.json`,
`completions/`, `images/`, `train.log`, `README.md` (the model card).
"""

import json
import sys
import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import get_model_param_count
from trl import ModelConfig, TrlParser

from brushup.comparison import compare, results_table
from brushup.config import DataConfig, PromptEnhancerConfig, RenderConfig
from brushup.console import TrainingProgress, log_to_file, quiet_libraries, say
from brushup.data import load_prompts, order_rows
from brushup.dry_run import dry_run
from brushup.evaluation import before_after_sheet
from brushup.hub import open_repo, publish
from brushup.interrupt import StopOnSignal, last_checkpoint
from brushup.model_card import run_settings, write_model_card
from brushup.objective import check_rewards
from brushup.policy import load_policy
from brushup.rewards import catalog, resolve
from brushup.tracking import Tracking, check_trackers
from brushup.trainer import PromptEnhancerTrainer
from brushup.training_check import ParametersMustChange
from brushup.workers import get_worker


def main(data: DataConfig, render: RenderConfig, args: PromptEnhancerConfig, model: ModelConfig) -> None:
    start = time.time()
    state = PartialState()
    if not args.dry_run:
        log_to_file(Path(args.output_dir) / "train.log", secrets=[args.hub_token])

    # Data, rewards, checkpoint: names and rows are checked before any model is loaded.
    train_prompts = load_prompts(
        data.train_prompts, "train", data.prompt_column, data.skip_bad_rows, data.max_train_samples
    )
    if data.balance_by or data.curriculum:
        train_prompts = order_rows(train_prompts, data.balance_by, data.curriculum, args.seed)
        args.shuffle_dataset = False
    validation_prompts = load_prompts(data.validation_prompts, "validation", data.prompt_column, data.skip_bad_rows)
    check_rewards(
        args,
        images_per_prompt=args.images_per_prompt,
        validation_images_per_prompt=args.validation_images_per_prompt,
    )
    if args.checker:
        resolve(args.checker)
    check_trackers(args.report_to)
    checkpoint = args.resume_from_checkpoint
    if checkpoint == "true":
        checkpoint = last_checkpoint(args.output_dir)
        say(f"going on from {checkpoint}" if checkpoint else f"no checkpoint in {args.output_dir} yet: starting anew")
    repo_id = open_repo(args)  # a wrong name or a missing right shows now, and not after hours

    # Worker: draws and scores, in this process or in a service
    worker = get_worker(render, args)

    # Policy
    args.eval_on_start = not checkpoint  # the untrained policy, to compare with
    if args.dry_run:
        args.report_to, args.log_completions = [], False  # it leaves nothing behind
    stop = StopOnSignal()
    trainer = PromptEnhancerTrainer(
        worker=worker,
        args=args,
        train_dataset=train_prompts,
        eval_dataset=validation_prompts,
        callbacks=[TrainingProgress(), ParametersMustChange()],
        **load_policy(model, args),
    )
    trainer.add_callback(Tracking(trainer, data, render, model))
    trainer.add_callback(stop)  # after those that ask for something at the end of a step
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainable = get_model_param_count(trainer.model, trainable_only=True)
    say(
        f"policy    {model.model_name_or_path}: {trainable:,} of {get_model_param_count(trainer.model):,} parameters "
        f"train\ngenerator {worker}\n"
        f"rewards   {', '.join(args.reward_funcs)}\n"
        f"prompts   {len(train_prompts):,} to train on, {len(validation_prompts):,} held out\n"
    )
    if args.dry_run:
        say(f"\n{dry_run(trainer)}")
        return trainer.end()

    # Train
    if checkpoint:
        trainer.load_arms(Path(checkpoint))
    trainer.train(resume_from_checkpoint=checkpoint)
    if stop.received:
        say(
            f"stopped by {stop.received.name} after step {trainer.state.global_step}; go on with\n"
            f"    --resume_from_checkpoint {last_checkpoint(args.output_dir)}"
        )
        raise SystemExit(128 + stop.received)
    hacked = trainer.hacking_watch.signs if args.stop_on_reward_hacking else {}
    trainer.save_model(args.output_dir)
    trainer.save_state()  # what was logged, for the report

    # Before and after
    if args.load_best_model_at_end and trainer.state.best_global_step:
        trainer.state.global_step = trainer.state.best_global_step  # the policy is now the one of that step
        say(f"the policy of step {trainer.state.global_step} was the best on the held-out prompts")
    step = trainer.state.global_step
    if step not in trainer.arms:
        trainer.evaluate()
    arms = {"original": trainer.validation.original, "untrained": trainer.arms.get(0), "trained": trainer.arms[step]}
    arms = {name: arm for name, arm in arms.items() if arm}  # the untrained one is not known after every resume
    results = compare(arms, trainer.validation.measures) | {
        "validation": {step: arm.mean_rewards() for step, arm in sorted(trainer.arms.items())},
        "seconds": round(time.time() - start, 1),
        "images_drawn": sum(gather_object([worker.images_drawn])),
        "reward_hacking": {"training": trainer.hacking_watch.found},
        "settings": run_settings(data, render, args, model, len(train_prompts), len(validation_prompts), step),
    }
    if state.is_main_process:
        output = Path(args.output_dir)
        (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        (output / "images").mkdir(exist_ok=True)
        before_after_sheet(arms["original"], arms["trained"]).save(output / "images" / "before_after.png")
        write_model_card(output, repo_id)
    table = results_table(results["arms"])
    say(f"\nOn {len(validation_prompts)} held-out prompts, the same seeds for each line:\n\n{table}\n")
    for name, gain in results.get("trained_minus_untrained", {}).items():
        if gain["ci95"]:
            low, high = gain["ci95"]
            say(f"trained - untrained {name}: {gain['mean']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})")
    if "untrained" in arms:
        say(f"trained beats untrained on {results['win_rate']:.0%} of the prompts")
    say(f"{results['images_drawn']:,} pictures, {results['seconds']:.0f} s; saved to {args.output_dir}")
    for sign in trainer.hacking_watch.found:
        say(f"reward hacking? {sign}")
    trainer.end()
    if hacked:
        say(
            f"stopped by stop_on_reward_hacking after step {step} of {trainer.state.max_steps}; nothing is pushed. "
            "Mend the rewards and train anew, or go on as it is with\n    --stop_on_reward_hacking false "
            f"--resume_from_checkpoint {last_checkpoint(args.output_dir)}"
        )
        raise SystemExit(1)
    if repo_id and state.is_main_process:
        try:
            say(f"pushed to {publish(args.output_dir, repo_id)}")
        except Exception as error:
            say(
                f"not pushed: {error}\nThe run is whole, in {args.output_dir}. Once that is settled:\n"
                f"    python recipes/publish.py --output_dir {args.output_dir} --hub_model_id {repo_id}"
            )
            raise SystemExit(1) from error


if __name__ == "__main__":
    if "--list_rewards" in sys.argv:
        print(catalog.table())
        sys.exit()
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    main(*TrlParser((DataConfig, RenderConfig, PromptEnhancerConfig, ModelConfig)).parse_args_and_config())
