"""How much longer does a step of Brushup's trainer take than TRL's? Seconds a step, as a ratio within one run.

    python benchmarks/overhead.py --output overhead.json

`GRPOTrainer` and `PromptEnhancerTrainer` train the same policy on the same prompts from the same seed, with a reward
that costs nothing (the length of the rewrite; Brushup's worker answers at once). Each runs in a thread, and they take
turns, step by step: only one works at a time. They write the same completions, so they do the same work. The limit is
TRL's step: a ratio of 1.

Two policies: the tiny world's, and one of about 100 million parameters with random weights.
"""

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import mean, median
from threading import Semaphore

import numpy as np
import torch
from peft import LoraConfig
from transformers import AutoConfig, AutoProcessor, Qwen2VLForConditionalGeneration, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

from brushup.config import PromptEnhancerConfig
from brushup.console import quiet_libraries
from brushup.prompts.dataset import load_prompts
from brushup.prompts.template import parse_prompt
from brushup.render.job import RenderResult
from brushup.rewards.registry import parse_rewards
from brushup.training.trainer import PromptEnhancerTrainer


POLICY = "data/tiny_world/policy"
WARM_UP = 3  # steps that do not count
LARGER = {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 14, "num_attention_heads": 24}


def free(images, user_prompts, prompts) -> list[float]:
    """Score by length: a reward that costs nothing. Brushup knows it by its name, and `FreeWorker` computes it."""
    return [len(prompt) % 11 / 11 for prompt in prompts]


def free_of_trl(completions, **columns) -> list[float]:
    """Score as `free` does, with the signature of TRL's rewards."""
    rewrites = [parse_prompt(completion[0]["content"]) or "" for completion in completions]
    return free(None, None, rewrites)


class FreeWorker:
    """A worker that answers each job at once."""

    token_limits = {"clip": 32}
    columns: tuple[str, ...] = ()

    def submit(self, jobs, return_images=False) -> Future:
        future = Future()
        scores = free(None, None, [job.prompt for job in jobs])
        future.set_result([RenderResult({"free": score}, tokens={"clip": 12}) for score in scores])
        return future


class TakeTurns(TrainerCallback):
    """Measures each step of a trainer that runs in a thread, and waits after it for the next turn.

    Attributes:
        seconds: of each step.
        may_go: released by the main thread: the trainer's turn has begun.
        turn_over: released when the trainer's turn, or its training, has ended.
    """

    def __init__(self):
        self.seconds: list[float] = []
        self.may_go, self.turn_over = Semaphore(0), Semaphore(0)

    def on_train_begin(self, args, state, control, **kwargs):
        torch.manual_seed(0)

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.began)
        random_state = torch.get_rng_state()  # the other trainer draws from the same generator
        self.turn_over.release()
        self.may_go.acquire()
        torch.set_rng_state(random_state)

    def start(self, trainer: GRPOTrainer) -> None:
        """Start a thread that trains when its turn comes."""
        trainer.add_callback(self)

        def train() -> None:
            self.may_go.acquire()
            trainer.train()

        self.training = ThreadPoolExecutor(1).submit(train)
        self.training.add_done_callback(lambda _: self.turn_over.release())

    def take(self) -> None:
        """Let the trainer do a step, or what is left after the last one; raise what it raised."""
        self.may_go.release()
        self.turn_over.acquire()
        if self.training.done():
            self.training.result()


def load_policy(larger: bool) -> Qwen2VLForConditionalGeneration:
    """Return the tiny policy, or a larger one with random weights, in float32."""
    if not larger:
        return Qwen2VLForConditionalGeneration.from_pretrained(POLICY, dtype=torch.float32)
    config = AutoConfig.from_pretrained(POLICY)
    for name, value in (LARGER | {"num_key_value_heads": 12}).items():
        setattr(config.text_config, name, value)
    config.text_config.layer_types = ["full_attention"] * LARGER["num_hidden_layers"]
    config.vision_config.hidden_size = LARGER["hidden_size"]
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(config).float()


def make_trainer(name: str, larger: bool, steps: int, folder: str) -> GRPOTrainer:
    """Return TRL's trainer ("trl") or Brushup's ("brushup"), alike but for their class."""
    args = PromptEnhancerConfig(
        output_dir=f"{folder}/{name}",
        reward_funcs=[f"{__file__}:free"],
        per_device_train_batch_size=32,
        num_generations=8,
        max_completion_length=32,
        max_steps=steps,
        learning_rate=1e-3,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        gradient_checkpointing=False,
        bf16=False,
        disable_tqdm=True,
        use_cpu=not torch.cuda.is_available(),
        seed=0,
    )
    settings = {
        "args": args,
        "train_dataset": load_prompts("data/tiny_world/train.jsonl"),
        "processing_class": AutoProcessor.from_pretrained(POLICY),
        "peft_config": LoraConfig(
            r=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM"
        ),
    }
    torch.manual_seed(0)  # LoRA's weights are random
    if name == "brushup":
        trainer = PromptEnhancerTrainer(load_policy(larger), FreeWorker(), parse_rewards(args), **settings)
    else:
        trainer = GRPOTrainer(load_policy(larger), free_of_trl, **settings)
    trainer.remove_callback(PrinterCallback)
    return trainer


def compare(larger: bool, steps: int) -> dict:
    """Train both, in turns, and return their seconds a step and the ratio."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = {name: make_trainer(name, larger, steps, folder) for name in ("trl", "brushup")}
        turns = {name: TakeTurns() for name in trainers}
        for name, turn in turns.items():
            turn.start(trainers[name])
        for step in range(steps):
            for name in sorted(turns, reverse=bool(step % 2)):
                turns[name].take()
        for turn in turns.values():
            turn.take()  # to the end of training
            turn.training.result()
    parameters = sum(parameter.numel() for parameter in trainers["trl"].model.parameters())
    seconds = {name: turn.seconds[WARM_UP:] for name, turn in turns.items()}
    ratios = np.array(seconds["brushup"]) / np.array(seconds["trl"])
    lengths = {
        name: [entry["completions/mean_length"] for entry in trainer.state.log_history if "reward" in entry]
        for name, trainer in trainers.items()
    }
    return {
        "parameters": parameters,
        "steps": len(ratios),
        "seconds": {name: median(values) for name, values in seconds.items()},
        "trainer_over_trl": median(ratios.tolist()),
        "mean_over_mean": mean(seconds["brushup"]) / mean(seconds["trl"]),
        "same_answers": lengths["trl"] == lengths["brushup"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", metavar="FILE", help="where to write the figures as JSON")
    parser.add_argument("--steps", type=int, nargs=2, default=(60, 15), help="of the tiny policy, and of the larger")
    arguments = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count() or 1)))
    found = {
        name: compare(larger, steps + WARM_UP)
        for name, larger, steps in zip(("tiny", "100M"), (False, True), arguments.steps, strict=True)
        if steps
    }
    print("policy        parameters   TRL s   ours s   ours / TRL   same answers")
    for name, result in found.items():
        trl, ours = result["seconds"]["trl"], result["seconds"]["brushup"]
        print(
            f"{name:<10} {result['parameters']:>13,} {trl:>7.3f} {ours:>8.3f} {result['trainer_over_trl']:>12.3f}   "
            f"{result['same_answers']}"
        )
    if arguments.output:
        worst = max(result["trainer_over_trl"] for result in found.values())
        Path(arguments.output).write_text(json.dumps({"trainer_over_trl": worst, "policies": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
