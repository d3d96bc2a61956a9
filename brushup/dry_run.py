"""The dry run: what a run will take, worked out from its settings and a few real steps."""

import math
import time
from pathlib import Path
from statistics import mean

import torch
from accelerate.utils import gather_object
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from brushup.evaluation import evaluate_prompts
from brushup.trainer import PromptEnhancerTrainer


class StepClock(TrainerCallback):
    """Seconds of each step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self._start)


def check_deadline(drawing: float, ddp_timeout: int) -> None:
    """Raises a ValueError if a rank draws for so many seconds at a time that the others give it up."""
    if drawing > ddp_timeout:
        raise ValueError(
            f"drawing keeps a rank busy for {drawing:.0f} s at a time, but the others wait for it no longer than "
            f"ddp_timeout = {ddp_timeout} s: raise ddp_timeout, or take fewer validation prompts"
        )


def dry_run(trainer: PromptEnhancerTrainer) -> str:
    """Trains for two batches, the second one measured, draws one held-out prompt, and saves nothing but that picture.

    All ranks call it together.

    Returns:
        The report: batch arithmetic, seconds, hours, memory.

    Raises:
        ValueError: there are fewer prompts than one batch takes, or ranks would wait for each other longer than
            `ddp_timeout`.
        RuntimeError: the picture could not be drawn.
    """
    args, validation = trainer.args, trainer.validation
    ranks = trainer.accelerator.num_processes
    prompts = args.generation_batch_size // args.num_generations
    pictures = args.generation_batch_size * args.images_per_prompt
    if prompts > len(trainer.train_dataset):
        raise ValueError(
            f"a batch takes {prompts} prompts, but train_prompts has {len(trainer.train_dataset)}: lower "
            "per_device_train_batch_size or gradient_accumulation_steps"
        )
    *_, steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())
    steps_per_batch = max(1, args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps)
    trainer.state.compute_steps(args, steps)
    between = trainer.state.eval_steps if args.eval_strategy == IntervalStrategy.STEPS else steps
    validations = 1 + math.ceil(steps / between)
    validation_pictures = (validations + 1) * len(validation.rows) * args.validation_images_per_prompt

    args.max_steps, args.logging_steps, args.logging_strategy = 2 * steps_per_batch, 1, IntervalStrategy.STEPS
    args.save_strategy, args.eval_strategy, args.eval_on_start = SaveStrategy.NO, IntervalStrategy.NO, False
    args.load_best_model_at_end, args.log_images_steps = False, 0
    clock = StepClock()
    trainer.add_callback(clock)
    trainer.train()
    step_seconds = mean(clock.seconds[steps_per_batch:])
    logged = [entry for entry in trainer.state.log_history if "render/seconds" in entry]
    drawing, waiting = (logged[-1][f"render/{name}"] for name in ("seconds", "wait_seconds"))
    picture_seconds = drawing / (pictures / ranks)
    validation_seconds = validation_pictures / ranks * picture_seconds

    if ranks > 1:
        check_deadline(max(drawing, validation_seconds / (validations + 1)), args.ddp_timeout)
    each, many = args.images_per_prompt, steps * pictures // steps_per_batch
    share = f"; a step takes 1/{steps_per_batch} of it" if steps_per_batch > 1 else ""
    lines = [
        f"a batch    {prompts} prompts x {args.num_generations} rewrites x {each} picture{'s' if each > 1 else ''} = "
        f"{pictures} pictures, on {ranks} process{'es' if ranks > 1 else ''}{share}",
        f"the run    {steps:,} steps: at most {many:,} pictures, and {validation_pictures:,} more for {validations} "
        "validations and the users' own prompts",
        f"a step     {step_seconds:.2f} s; drawing takes {drawing:.2f} s ({1 / picture_seconds:.1f} pictures/s on "
        f"each process), of which training waits {waiting:.2f} s",
        f"estimate   {steps * step_seconds / 3600:.2f} hours to train, and {validation_seconds / 3600:.2f} to draw "
        "for validation",
    ]
    if torch.cuda.is_available():
        used = max(gather_object([torch.cuda.max_memory_reserved() / 2**30]))
        there = torch.cuda.get_device_properties(0).total_memory / 2**30
        lines.append(f"memory     at most {used:.1f} of {there:.1f} GiB of a GPU")
    if trainer.accelerator.is_main_process:
        row = validation.rows[0]
        count = args.validation_images_per_prompt
        arm = evaluate_prompts([row["user_prompt"]], [row], trainer.worker, trainer.text_rewards, count, args.seed)
        if arm.errors:
            raise RuntimeError(f"a held-out prompt could not be drawn: {arm.errors[0]}")
        path = Path(args.output_dir) / "dry_run.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        arm.pictures[0].save(path)
        scores = ", ".join(f"{name} {score:.3f}" for name, score in arm.rewards[0].items())
        lines.append(f"a picture  of {row['user_prompt']!r}: {scores}; see {path}")
    return "\n".join(lines)
