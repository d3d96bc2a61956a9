"""Does the trainer wait for the worker without need? Seconds a step over the limit, as ratios within one run.

    python benchmarks/pipeline.py --output pipeline.json

The tiny policy trains, in four micro-batches of 8 rewrites, with a stand-in worker that sleeps for each image, one
after the other: 0.5, 1 and 2 times as long a step as the policy takes (to write, to compute the reference model's
log-probabilities, and to train). The limit is max(policy time, render time): no step can take less. The policy time is
that of `one_batch` with a worker that answers at once. The modes take turns, several rounds; the table has medians:

- `one_batch`: all rewrites are written, then rendered
- `four_batches`: each of four generation batches is rendered while the next is written, and trained on as soon as its
  images are there (`steps_per_generation: 1`); nothing is stale
- `stale`: the next step's rewrites are rendered while this step is trained on (`max_staleness: 1`)

With nothing at the same time the ratios would be 1.5, 2 and 1.5.
"""

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from peft import LoraConfig
from transformers import AutoProcessor, TrainerCallback
from transformers.trainer_callback import PrinterCallback

from brushup.config import PromptEnhancerConfig
from brushup.console import quiet_libraries
from brushup.prompts.dataset import load_prompts
from brushup.render.job import RenderResult
from brushup.rewards.registry import parse_rewards
from brushup.training.trainer import PromptEnhancerTrainer


POLICY = "data/tiny_world/policy"
REWRITES = 32  # 4 prompts x 8
MICRO_BATCHES = 4
WARM_UP = 2  # steps that do not count; with `max_staleness: 1` the first one writes the rewrites of two
FACTORS = (0.5, 1, 2)
MODES = {"one_batch": {}, "four_batches": {"steps_per_generation": 1}, "stale": {"max_staleness": 1}}


def free(images, user_prompts, prompts) -> list[float]:
    """Score by length: a reward that costs nothing. Brushup knows it by its name, and `SleepingWorker` computes it."""
    return [len(prompt) % 11 / 11 for prompt in prompts]


class SleepingWorker:
    """A worker that sleeps so many seconds for each image, one after the other."""

    token_limits = {"clip": 32}
    columns: tuple[str, ...] = ()

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._thread = ThreadPoolExecutor(max_workers=1)

    def submit(self, jobs, return_images=False) -> Future:
        return self._thread.submit(self._render, jobs)

    def _render(self, jobs) -> list[RenderResult]:
        time.sleep(self.seconds * len(jobs))
        scores = free(None, None, [job.prompt for job in jobs])
        return [RenderResult({"free": score}, tokens={"clip": 12}) for score in scores]


class StepClock(TrainerCallback):
    """Measures the seconds of each step, from the end of the one before: TRL fetches the rows between the two."""

    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.ends.append(time.perf_counter())


def step_seconds(mode: str, image_seconds: float, steps: int) -> float:
    """Return the median seconds of the steps of a run, with a worker that sleeps `image_seconds` for each image."""
    with tempfile.TemporaryDirectory() as folder:
        args = PromptEnhancerConfig(
            output_dir=folder,
            reward_funcs=[f"{__file__}:free"],
            per_device_train_batch_size=REWRITES // MICRO_BATCHES,
            gradient_accumulation_steps=MICRO_BATCHES,
            num_generations=8,
            max_completion_length=32,
            max_steps=steps + WARM_UP + 1,
            learning_rate=1e-4,
            beta=0.04,
            logging_steps=1000,
            save_strategy="no",
            report_to="none",
            gradient_checkpointing=False,
            bf16=False,
            disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
            use_cpu=not torch.cuda.is_available(),
            seed=0,
            **MODES[mode],
        )
        trainer = PromptEnhancerTrainer(
            POLICY,
            SleepingWorker(image_seconds),
            parse_rewards(args),
            args,
            train_dataset=load_prompts("data/tiny_world/train.jsonl"),
            processing_class=AutoProcessor.from_pretrained(POLICY),
            peft_config=LoraConfig(r=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
        )
        trainer.remove_callback(PrinterCallback)
        clock = StepClock()
        trainer.add_callback(clock)
        trainer.train()
    seconds = [end - start for start, end in pairwise(clock.ends)]  # without the first step
    return median(seconds[WARM_UP - 1 : -1])  # with `max_staleness: 1` the last step writes nothing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE", help="where to write the figures as JSON")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="of each run")
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    ratios: dict[str, dict[float, list[float]]] = {mode: {factor: [] for factor in FACTORS} for mode in MODES}
    policy_seconds = []
    for number in range(arguments.rounds):
        policy = step_seconds("one_batch", 0.0, arguments.steps)
        policy_seconds.append(policy)
        for factor in FACTORS:
            for mode in MODES:
                seconds = step_seconds(mode, factor * policy / REWRITES, arguments.steps)
                ratios[mode][factor].append(seconds / max(policy, factor * policy))
        print(f"round {number + 1}: a step of the policy alone takes {policy:.3f} s", flush=True)
    over = {
        mode: {str(factor): median(values) for factor, values in of_mode.items()} for mode, of_mode in ratios.items()
    }
    print(f"\nstep / limit   {''.join(f'render {factor:g} x policy'.rjust(21) for factor in FACTORS)}")
    for mode, of_mode in over.items():
        print(f"{mode:<15}{''.join(f'{ratio:.2f}'.rjust(21) for ratio in of_mode.values())}")
    if arguments.output:
        found = {"step_over_limit": over, "rounds": ratios, "policy_seconds": policy_seconds}
        Path(arguments.output).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
