"""Trains a policy with GRPO to rewrite prompts, and shows before and after on held-out prompts.

On a laptop, in about three minutes (real models: recipes/qwen2vl_2b_sd3_1gpu.yaml):

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo.py --config recipes/tiny_cpu.yaml

Each YAML key is also a flag: `--max_steps 120 --reward_funcs clip keyword_retention --reward_weights 1.0 0.2`.
`--list_rewards` prints the rewards by name (all about them: docs/rewards.md).
`--push_to_hub true --hub_model_id me/name` publishes the trained policy (later: recipes/publish.py).
After its second step it says how long the run will take, and which setting wastes time.
It leaves in `output_dir`: the adapter (or model), checkpoints, `validation_<step>.json`, `results.json`,
`completions/`, `images/`, `train.log`, `README.md` (the model card).
"""

import sys

from brushup.flags import answer_at_once, parse


if __name__ == "__main__":  # before the imports below, which take ten seconds
    if "--list_rewards" in sys.argv:
        from brushup.rewards import catalog

        print(catalog.table())
        sys.exit()
    answer_at_once(__doc__, "DataConfig", "RenderConfig", "PromptEnhancerConfig", "ModelConfig")

import copy
import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import get_model_param_count
from trl import ModelConfig

from brushup.config import DataConfig, PromptEnhancerConfig, RenderConfig
from brushup.console import end_run, log_to_file, quiet_libraries, say, serve_command
from brushup.evaluation.arm import before_after_sheet
from brushup.evaluation.compare import results_table
from brushup.evaluation.results import Results
from brushup.policy.chat import prepare_processor
from brushup.policy.load import load_policy, load_processor
from brushup.prompts.dataset import load_prompts, order_rows
from brushup.publishing.card import run_settings, write_model_card
from brushup.publishing.hub import open_repo, publish
from brushup.render.job import Worker
from brushup.render.service.launch import get_worker
from brushup.rewards.registry import RewardSpec, check_image_count, parse_rewards, resolve
from brushup.training.callbacks import ParametersMustChange, StopOnSignal, TrainingProgress, ValidateAtTheEnd
from brushup.training.checkpoints import is_whole, last_checkpoint, load_arms
from brushup.training.cost import Cost
from brushup.training.hacking_watch import RewardHackingWatch
from brushup.training.tracking import Tracking, check_trackers
from brushup.training.trainer import PromptEnhancerTrainer


def main(data: DataConfig, render: RenderConfig, args: PromptEnhancerConfig, model: ModelConfig) -> None:
    start = time.time()
    log_to_file(Path(args.output_dir) / "train.log", secrets=[args.hub_token])

    # Prompts, rewards, checkpoint: names and rows are checked before any model is loaded.
    train_prompts, validation_prompts = load_all_prompts(data, args)
    rewards = check_settings(args)
    checkpoint = find_checkpoint(args)
    repo_id = open_repo(args)  # a wrong name or a missing right shows now, and not after hours
    processor = load_processor(model.model_name_or_path, model.model_revision, args.trust_remote_code)
    prepare_processor(processor, args.chat_template_kwargs)

    # Worker: renders and scores, in this process or in a service
    worker = get_worker(render, rewards, Path(args.output_dir), args.ddp_timeout, serve_command())

    # Policy
    policy = load_policy(model, args)
    args = copy.copy(args)
    args.model_init_kwargs = policy.pop("model_init_kwargs")
    args.push_to_hub = False  # transformers would push all of output_dir, unchecked
    args.eval_on_start = not checkpoint  # the untrained policy, to compare with
    args.shuffle_dataset = args.shuffle_dataset and not (data.balance_by or data.curriculum)
    stop = StopOnSignal()
    trainer = PromptEnhancerTrainer(
        worker=worker,
        rewards=rewards,
        args=args,
        train_dataset=train_prompts,
        eval_dataset=validation_prompts,
        processing_class=processor,
        callbacks=[TrainingProgress(), ParametersMustChange(), ValidateAtTheEnd()],
        **policy,
    )
    trainer.add_callback(Cost(trainer))
    trainer.add_callback(Tracking(trainer, data, render, model))
    trainer.add_callback(stop)  # after the callbacks that ask for a validation at the end of a step
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    say(description(trainer, model, worker))

    # Train
    if checkpoint:
        trainer.arms |= load_arms(Path(checkpoint), trainer.validation)
    trainer.train(resume_from_checkpoint=checkpoint)
    if stop.received:
        checkpoint = last_checkpoint(args.output_dir)
        end_run(
            f"stopped by {stop.received.name} after step {trainer.state.global_step}; go on with\n"
            f"    --resume_from_checkpoint {checkpoint}",
            128 + stop.received,
        )
    trainer.save_model(args.output_dir)
    trainer.save_state()  # the log, for the report

    # Before and after
    compare_before_and_after(trainer, start, data, render, model)
    if PartialState().is_main_process:
        write_model_card(Path(args.output_dir), repo_id)
    trainer.end()
    publish_or_explain(trainer, repo_id)


def load_all_prompts(data: DataConfig, args: PromptEnhancerConfig) -> tuple[Dataset, Dataset]:
    """Return the prompts to train on, in the order asked for, and the held-out prompts.

    Raises:
        ValueError: as `load_prompts`; or there are fewer prompts than one batch needs, so nothing would be trained.
    """
    settings = {"prompt_column": data.prompt_column, "skip_bad_rows": data.skip_bad_rows}
    train_prompts = load_prompts(data.train_prompts, "train", **settings, max_samples=data.max_train_samples)
    if data.balance_by or data.curriculum:
        train_prompts = order_rows(train_prompts, data.balance_by, data.curriculum, args.seed)
    needed = args.generation_batch_size // args.num_generations
    if len(train_prompts) < needed:
        raise ValueError(
            f"train_prompts: {len(train_prompts)} prompts, but a batch takes {needed} (generation_batch_size "
            f"{args.generation_batch_size} / num_generations {args.num_generations}): add prompts, or lower "
            "per_device_train_batch_size or steps_per_generation"
        )
    return train_prompts, load_prompts(data.validation_prompts, "validation", **settings)


def check_settings(args: PromptEnhancerConfig) -> list[RewardSpec]:
    """Return the rewards; raise an error for a wrong reward, checker or tracker."""
    rewards = parse_rewards(args, args.reward_weights)
    check_image_count(
        rewards,
        images_per_prompt=args.images_per_prompt,
        validation_images_per_prompt=args.validation_images_per_prompt,
    )
    if args.checker:
        resolve(args.checker)
    check_trackers(args.report_to)
    return rewards


def find_checkpoint(args: PromptEnhancerConfig) -> str | None:
    """Return the checkpoint to go on from; None to start anew."""
    asked = args.resume_from_checkpoint
    if asked in (None, False, "false"):
        return None
    if asked not in (True, "true"):
        if not is_whole(Path(asked)):
            raise ValueError(f"resume_from_checkpoint: {asked} is no checkpoint, or it was not written to its end")
        return asked
    checkpoint = last_checkpoint(args.output_dir)
    say(f"going on from {checkpoint}" if checkpoint else f"no checkpoint in {args.output_dir} yet: starting anew")
    return checkpoint


def description(trainer: PromptEnhancerTrainer, model: ModelConfig, worker: Worker) -> str:
    """Return the first lines of a run: its policy, generator, rewards and prompts."""
    trainable = get_model_param_count(trainer.model, trainable_only=True)
    return (
        f"policy    {model.model_name_or_path}: {trainable:,} of {get_model_param_count(trainer.model):,} parameters "
        f"train\ngenerator {worker}\n"
        f"rewards   {', '.join(trainer.args.reward_funcs)}\n"
        f"prompts   {len(trainer.train_dataset):,} to train on, {len(trainer.validation.rows):,} held out\n"
    )


def compare_before_and_after(
    trainer: PromptEnhancerTrainer, start: float, data: DataConfig, render: RenderConfig, model: ModelConfig
) -> Results:
    """Compare the user prompts, the untrained and the trained policy; save and print the results. All ranks call it.

    Args:
        trainer: after training.
        start: when the run began, as `time.time` tells it.
        data, render, model: the settings that the results name.
    """
    args, state = trainer.args, trainer.state
    step = state.global_step
    if args.load_best_model_at_end and state.best_global_step:
        step = state.best_global_step
        say(f"the policy of step {step} was the best on the held-out prompts")
    if step not in trainer.arms:
        trainer.evaluate()
    trained = trainer.arms.get(step) or trainer.arms[state.global_step]
    arms = {"original": trainer.validation.original, "untrained": trainer.arms.get(0), "trained": trained}
    arms |= {"revised untrained": trainer.revised_arms.get(0), "revised trained": trainer.revised_arms.get(step)}
    arms = {name: arm for name, arm in arms.items() if arm}  # after a resume the untrained one may be unknown
    found = trainer.callback(RewardHackingWatch).found
    results = Results.compare(
        arms,
        trainer.validation.measures,
        [name for name in ("trained", "revised trained") if name in arms],
        validation={str(step): arm.mean_rewards() for step, arm in sorted(trainer.arms.items())},
        seconds=round(time.time() - start, 1),
        images_drawn=sum(gather_object([trainer.worker.images_drawn])),
        reward_hacking={"training": found},
        settings=run_settings(
            data, render, args, model, trainer.rewards, len(trainer.train_dataset), len(trainer.validation.rows), step
        ),
    )
    if PartialState().is_main_process:
        output = Path(args.output_dir)
        results.save(output)
        (output / "images").mkdir(exist_ok=True)
        before_after_sheet(arms["original"], arms["trained"]).save(output / "images" / "before_after.png")
    prompts = len(trainer.validation.rows)
    say(f"\nOn {prompts} held-out prompts, the same seeds for each line:\n\n{results_table(results.arms)}\n")
    for name, gain in results.trained_minus_untrained.items():
        if gain["ci95"]:
            low, high = gain["ci95"]
            say(f"trained - untrained {name}: {gain['mean']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})")
    if results.win_rate is not None:
        say(f"trained beats untrained on {results.win_rate:.0%} of the prompts")
    say(f"{results.images_drawn:,} images, {results.seconds:.0f} s; saved to {args.output_dir}")
    for sign in found:
        say(f"reward hacking? {sign}")
    if (share := results.arms["trained"]["prompt_share"]) < 0.99:
        say(
            f"{1 - share:.1%} of what the trained policy writes is not the prompt (quotes, labels): use it with "
            "Brushup's parser, or train with the reward `format` (docs/rewards.md)"
        )
    return results


def publish_or_explain(trainer: PromptEnhancerTrainer, repo_id: str | None) -> None:
    """Push the run to the Hub if it was asked for; if that fails, end the program and say how to go on."""
    args, state = trainer.args, trainer.state
    if args.stop_on_reward_hacking and trainer.callback(RewardHackingWatch).signs:
        end_run(
            f"stopped by stop_on_reward_hacking after step {state.global_step} of {state.max_steps}; nothing is "
            "pushed. Mend the rewards and train anew, or go on as it is with\n    --stop_on_reward_hacking false "
            f"--resume_from_checkpoint {last_checkpoint(args.output_dir)}",
            1,
        )
    if repo_id and PartialState().is_main_process:
        try:
            say(f"pushed to {publish(args.output_dir, repo_id)}")
        except Exception as error:
            end_run(
                f"not pushed: {error}\nThe run is whole, in {args.output_dir}. Once that is settled:\n"
                f"    python recipes/publish.py --output_dir {args.output_dir} --hub_model_id {repo_id}",
                1,
            )


if __name__ == "__main__":
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    main(*parse(DataConfig, RenderConfig, PromptEnhancerConfig, ModelConfig))
