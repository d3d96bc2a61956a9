"""Trains a policy with GRPO to rewrite prompts, and shows before and after on held-out prompts.

On a laptop, in about two and a half minutes (real models: recipes/qwen2vl_2b_sd3_1gpu.yaml):

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/grpo.py --config recipes/tiny_cpu.yaml

Each YAML key is also a flag: `--max_steps 120 --reward_funcs clip keyword_retention --reward_weights 1.0 0.2`.
It leaves in `output_dir`: the adapter (or model), checkpoints, `results.json`, `completions/`, `images/`, `README.md`.
"""

import json
import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from trl import ModelConfig, TrlParser, get_peft_config, get_quantization_config

from brushup.config import DataConfig, PromptEnhancerConfig, RenderConfig
from brushup.console import TrainingProgress, quiet_libraries
from brushup.data import load_prompts, order_rows
from brushup.enhancer import PromptEnhancer
from brushup.evaluation import (
    Arm,
    before_after_sheet,
    evaluate_prompts,
    paired_difference,
    results_table,
    win_rate,
)
from brushup.render import Renderer
from brushup.rewards import is_image_reward, label, load_reward, resolve
from brushup.trainer import PromptEnhancerTrainer
from brushup.worker import LocalWorker


def main(data: DataConfig, render: RenderConfig, args: PromptEnhancerConfig, model: ModelConfig) -> None:
    start = time.time()
    state = PartialState()
    say = print if state.is_main_process else lambda *words: None

    # Data, rewards: names and rows are checked before any model is loaded.
    train_prompts = load_prompts(
        data.train_prompts, "train", data.prompt_column, data.skip_bad_rows, data.max_train_samples
    )
    if data.balance_by or data.curriculum:
        train_prompts = order_rows(train_prompts, data.balance_by, data.curriculum, args.seed)
        args.shuffle_dataset = False
    validation = list(load_prompts(data.validation_prompts, "validation", data.prompt_column, data.skip_bad_rows))
    checker = resolve(data.checker) if data.checker else None
    image_rewards = [name for name in args.reward_funcs if is_image_reward(name)]

    # Worker: draws and scores
    renderer = Renderer(
        render.generator,
        render.generator_init_kwargs,
        render.render_kwargs,
        batch_size=render.render_batch_size,
        device=render.render_device,
        dtype=render.render_dtype,
    )
    worker = LocalWorker(
        renderer,
        {
            label(name): load_reward(name, device=renderer.device, **args.kwargs_of_reward(name))
            for name in image_rewards
        },
    )

    # Policy
    args.model_init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }
    trainer = PromptEnhancerTrainer(
        model.model_name_or_path,
        worker,
        args,
        train_dataset=train_prompts,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        callbacks=[TrainingProgress()],
    )
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainable = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert trainable, "no parameter of the policy would train: check use_peft, lora_target_modules and the adapter"
    say(
        f"policy    {model.model_name_or_path}: {sum(p.numel() for p in trainable):,} of "
        f"{sum(p.numel() for p in trainer.model.parameters()):,} parameters train\n"
        f"generator {render.generator} on {renderer.device}\n"
        f"rewards   {', '.join(args.reward_funcs)}\n"
        f"prompts   {len(train_prompts):,} to train on, {len(validation):,} held out"
    )

    # Before: each rank rewrites and draws its share of the held-out prompts
    enhancer = PromptEnhancer(trainer.model, trainer.processing_class)

    def rewrite(rows: list[dict]) -> list[str]:
        """The policy's likeliest answers; where one is malformed the user's own prompt."""
        asked = [row["user_prompt"] for row in rows]
        done = enhancer.enhance(asked, args.max_completion_length, temperature=0)
        malformed = sum(gather_object([sum(enhancement.fell_back for enhancement in done)]))
        if malformed:
            say(f"{malformed} answers are malformed: the user's prompt is drawn instead")
        return [enhancement.prompt for enhancement in done]

    def evaluate(prompts: list[str], rows: list[dict]) -> Arm:
        arm = evaluate_prompts(
            prompts, rows, worker, trainer.text_rewards, data.validation_images_per_prompt, args.seed, checker
        )
        return Arm.joined(gather_object([arm]))

    with state.split_between_processes(validation) as rows:
        arms = {"original": evaluate([row["user_prompt"] for row in rows], rows)}
        arms["untrained"] = evaluate(rewrite(rows), rows)
    say(f"\nBefore training, {time.time() - start:.0f} s after the start:\n\n{results_table(arms)}\n")

    # Train
    fingerprint = [parameter.detach().float().sum().item() for parameter in trainable]
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    changed = sum(a != b.detach().float().sum().item() for a, b in zip(fingerprint, trainable, strict=True))
    assert changed, "training changed no parameter: check learning_rate and whether the rewards of a group differ"
    trainer.save_model(args.output_dir)

    # After
    with state.split_between_processes(validation) as rows:
        arms["trained"] = evaluate(rewrite(rows), rows)
    weights = dict(zip(trainer.reward_func_names, trainer.reward_weights.tolist(), strict=True))
    results = {
        "arms": {name: arm.summary() for name, arm in arms.items()},
        "trained_minus_untrained": {
            name: paired_difference(arms["trained"], arms["untrained"], name) for name in weights
        },
        "win_rate": win_rate(arms["trained"], arms["untrained"], weights),
        "seconds": round(time.time() - start, 1),
        "images_drawn": sum(gather_object([worker.images_drawn])),
    }
    if state.is_main_process:
        output = Path(args.output_dir)
        (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        (output / "images").mkdir(exist_ok=True)
        before_after_sheet(arms["original"], arms["trained"]).save(output / "images" / "before_after.png")
        trainer.create_model_card(model_name=output.name)
    say(f"\nOn {len(validation)} held-out prompts, the same seeds for each line:\n\n{results_table(arms)}\n")
    for name, gain in results["trained_minus_untrained"].items():
        low, high = gain["ci95"]
        say(f"trained - untrained {name}: {gain['mean']:+.3f} (95 % interval {low:+.3f} to {high:+.3f})")
    say(
        f"trained beats untrained on {results['win_rate']:.0%} of the prompts; {results['images_drawn']:,} pictures, "
        f"{results['seconds']:.0f} s; saved to {args.output_dir}"
    )
    if args.push_to_hub:
        trainer.push_to_hub(commit_message="Trained with Brushup")
    trainer.end()


if __name__ == "__main__":
    quiet_libraries()
    torch.set_float32_matmul_precision("high")
    main(*TrlParser((DataConfig, RenderConfig, PromptEnhancerConfig, ModelConfig)).parse_args_and_config())
