"""What does Brushup's trainer cost over TRL's? Seconds a step, as a ratio within one run.

    python benchmarks/overhead.py --output overhead.json

`GRPOTrainer` and `PromptEnhancerTrainer` train the same policy on the same prompts from the same seed, with a reward
that costs nothing (of the length of the rewrite; ours gets it from a worker that answers at once). They take turns,
step by step, and write the same answers, so they do the same work. The limit is TRL's own step: a ratio of 1.

Two policies: the tiny world's, and one of about 100 million parameters with random weights.
"""

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import Future
from pathlib import Path
from statistics import mean, median

import numpy as np
import torch
from greenlet import getcurrent, greenlet
from peft import LoraConfig
from transformers import AutoConfig, AutoProcessor, Qwen2VLForConditionalGeneration, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOTrainer

from brushup.config import PromptEnhancerConfig
from brushup.console import quiet_libraries
from brushup.data import load_prompts
from brushup.prompts import parse_answer
from brushup.trainer import PromptEnhancerTrainer
from brushup.worker import RenderResult


POLICY = "data/tiny_world/policy"
WARM_UP = 3  # steps that do not count
LARGER = {"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 14, "num_attention_heads": 24}


def free(images, user_prompts, prompts) -> list[float]:
    """A reward that costs nothing. Ours is asked for by this name, and `FreeWorker` gives it."""
    return [len(prompt) % 11 / 11 for prompt in prompts]


def free_of_trl(completions, **columns) -> list[float]:
    rewrites = [parse_answer(completion[0]["content"]) or "" for completion in completions]
    return free(None, None, rewrites)


class FreeWorker:
    """Answers each job at once."""

    token_limits = {"clip": 32}

    def submit(self, jobs, return_images=False) -> Future:
        future = Future()
        scores = free(None, None, [job.prompt for job in jobs])
        future.set_result([RenderResult({"free": score}, tokens={"clip": 12}) for score in scores])
        return future


class InTurns(TrainerCallback):
    """Hands over to the other trainer after each step, and takes the seconds of its own."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_train_begin(self, args, state, control, **kwargs):
        torch.manual_seed(0)

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.perf_counter() - self.began)
        random_state = torch.get_rng_state()
        getcurrent().parent.switch()
        torch.set_rng_state(random_state)


def load_policy(larger: bool) -> Qwen2VLForConditionalGeneration:
    if not larger:
        return Qwen2VLForConditionalGeneration.from_pretrained(POLICY, dtype=torch.float32)
    config = AutoConfig.from_pretrained(POLICY)
    for name, value in (LARGER | {"num_key_value_heads": 12}).items():
        setattr(config.text_config, name, value)
    config.text_config.layer_types = ["full_attention"] * LARGER["num_hidden_layers"]
    config.vision_config.hidden_size = LARGER["hidden_size"]
    torch.manual_seed(0)
    return Qwen2VLForConditionalGeneration(config).float()


def trainers(larger: bool, steps: int, folder: str) -> dict[str, GRPOTrainer]:
    """Both, alike but for their class."""

    def make(name: str) -> GRPOTrainer:
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
        targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
        settings = {
            "args": args,
            "train_dataset": load_prompts("data/tiny_world/train.jsonl"),
            "processing_class": AutoProcessor.from_pretrained(POLICY),
            "peft_config": LoraConfig(r=16, target_modules=targets, task_type="CAUSAL_LM"),
        }
        torch.manual_seed(0)  # LoRA's weights are random
        if name == "brushup":
            trainer = PromptEnhancerTrainer(load_policy(larger), FreeWorker(), **settings)
        else:
            trainer = GRPOTrainer(load_policy(larger), free_of_trl, **settings)
        trainer.remove_callback(PrinterCallback)
        return trainer

    return {name: make(name) for name in ("trl", "brushup")}


def compare(larger: bool, steps: int) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        both = trainers(larger, steps, folder)
        clocks, turns = {}, {}
        for name, trainer in both.items():
            clocks[name] = InTurns()
            trainer.add_callback(clocks[name])
            turns[name] = greenlet(trainer.train)
        for step in range(steps):
            for name in sorted(turns, reverse=bool(step % 2)):
                turns[name].switch()
        for turn in turns.values():
            turn.switch()  # to the end of training
    parameters = sum(parameter.numel() for parameter in both["trl"].model.parameters())
    seconds = {name: clock.seconds[WARM_UP:] for name, clock in clocks.items()}
    ratios = np.array(seconds["brushup"]) / np.array(seconds["trl"])
    lengths = {
        name: [entry["completions/mean_length"] for entry in trainer.state.log_history if "reward" in entry]
        for name, trainer in both.items()
    }
    return {
        "parameters": parameters,
        "steps": len(ratios),
        "seconds": {name: median(some) for name, some in seconds.items()},
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
