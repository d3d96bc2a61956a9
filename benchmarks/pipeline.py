"""Is the worker ever waited for without need? Seconds a step, over the limit, as ratios within one run.

    python benchmarks/pipeline.py --output pipeline.json

The tiny policy trains, in four micro-batches of 8 rewrites, with a stand-in renderer that sleeps: one picture after
the other, for 0.5, 1 and 2 times as long a batch as the policy takes for a step (to write, to compute the reference's
log-probabilities, and to train). The limit is max(policy time, render time): no step can take less. The policy time is
that of `one_part` with a renderer that answers at once. In turns, several rounds, medians:

- `one_part`: all rewrites are written, then sent; drawing goes on while the reference log-probabilities are computed
- `on_policy`: written and sent in parts, each of which is trained on as soon as it is drawn (`generate_in_parts: 4`)
- `lookahead`: the next batch is drawn while this one trains (`lookahead: 1`); its rewrites are one update old

One after the other, with nothing at the same time, would be 1.5, 2 and 1.5.
"""

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import median

import torch
from peft import LoraConfig
from transformers import AutoProcessor
from transformers.trainer_callback import PrinterCallback

from brushup.config import PromptEnhancerConfig
from brushup.console import quiet_libraries
from brushup.data import load_prompts
from brushup.dry_run import StepClock
from brushup.trainer import PromptEnhancerTrainer
from brushup.worker import RenderResult


POLICY = "data/tiny_world/policy"
REWRITES = 32  # 4 prompts x 8
MICRO_BATCHES = 4
WARM_UP = 2  # steps that do not count; with lookahead the first one writes two batches
FACTORS = (0.5, 1, 2)
MODES = {"one_part": {}, "on_policy": {"generate_in_parts": MICRO_BATCHES}, "lookahead": {"lookahead": 1}}


def free(images, user_prompts, prompts) -> list[float]:
    """A reward that costs nothing; it is asked for by this name, and `SleepingWorker` gives it."""
    return [len(prompt) % 11 / 11 for prompt in prompts]


class SleepingWorker:
    """Takes its time for each picture, one after the other, and no processor."""

    token_limits = {"clip": 32}

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._thread = ThreadPoolExecutor(max_workers=1)

    def submit(self, jobs, return_images=False) -> Future:
        return self._thread.submit(self._draw, jobs)

    def _draw(self, jobs) -> list[RenderResult]:
        time.sleep(self.seconds * len(jobs))
        scores = free(None, None, [job.prompt for job in jobs])
        return [RenderResult({"free": score}, tokens={"clip": 12}) for score in scores]


def step_seconds(mode: str, picture_seconds: float, steps: int) -> float:
    """The median over the steps of a run."""
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
            SleepingWorker(picture_seconds),
            args,
            train_dataset=load_prompts("data/tiny_world/train.jsonl"),
            processing_class=AutoProcessor.from_pretrained(POLICY),
            peft_config=LoraConfig(r=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
        )
        trainer.remove_callback(PrinterCallback)
        clock = StepClock()
        trainer.add_callback(clock)
        trainer.train()
    return median(clock.seconds[WARM_UP:-1])  # with lookahead the last step writes no batch


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
    for turn in range(arguments.rounds):
        policy = step_seconds("one_part", 0.0, arguments.steps)
        policy_seconds.append(policy)
        for factor in FACTORS:
            for mode in MODES:
                seconds = step_seconds(mode, factor * policy / REWRITES, arguments.steps)
                ratios[mode][factor].append(seconds / max(policy, factor * policy))
        print(f"round {turn + 1}: a step of the policy alone takes {policy:.3f} s", flush=True)
    over = {mode: {str(factor): median(some) for factor, some in of.items()} for mode, of in ratios.items()}
    print(f"\nstep / limit   {''.join(f'render {factor:g} x policy'.rjust(21) for factor in FACTORS)}")
    for mode, of in over.items():
        print(f"{mode:<15}{''.join(f'{ratio:.2f}'.rjust(21) for ratio in of.values())}")
    if arguments.output:
        found = {"step_over_limit": over, "rounds": ratios, "policy_seconds": policy_seconds}
        Path(arguments.output).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
