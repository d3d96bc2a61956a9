"""The policy in gpu.py: writing, training, and whole GRPO steps."""

import gc
import tempfile
import time
from unittest.mock import patch

import torch
from datasets import Dataset
from gpu_models import TINY_WORLD, Clock, Pipeline, Row, Sizes, as_renderer, load_scorer, random_policy
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoProcessor, GenerationConfig, Qwen2VLForConditionalGeneration, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import GRPOConfig, GRPOTrainer

from brushup.config import PromptEnhancerConfig
from brushup.prompts.dataset import load_prompts
from brushup.render.worker import LocalWorker
from brushup.rewards.registry import RewardSpec
from brushup.training.trainer import PromptEnhancerTrainer


AS_TRL = "dynamic cache, LoRA, as TRL does"
COMPILED = "static cache, compiled, LoRA"
MERGED = "static cache, compiled, LoRA merged"
LORA = {
    "r": 16,
    "lora_alpha": 32,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "task_type": "CAUSAL_LM",
}
SETTINGS = {
    "max_steps": 2,  # the first one warms up
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "seed": 0,
}


def writing(clock: Clock, sizes: Sizes, device: str, until: float) -> dict[str, Row]:
    """Measure the seconds in which the smaller policy writes the completions of a step, in three ways."""
    policy = get_peft_model(random_policy(sizes.policies[0], sizes.dtype, device), LoraConfig(**LORA)).eval()
    rows = {AS_TRL: clock.attempt(AS_TRL, lambda: write(clock, sizes, policy, AS_TRL, disable_compile=True), until)}
    static = {"cache_implementation": "static", "disable_compile": False}
    rows[COMPILED] = clock.attempt(COMPILED, lambda: write(clock, sizes, policy, COMPILED, **static), until)
    torch.compiler.reset()
    policy.merge_adapter()
    rows[MERGED] = clock.attempt(MERGED, lambda: write(clock, sizes, policy, MERGED, **static), until)
    torch.compiler.reset()
    return rows


def write(clock: Clock, sizes: Sizes, policy: PeftModel, name: str, **generation) -> Row:
    """Write the completions of a step twice; transformers compiles during the first time, the second one counts."""
    tokenizer = AutoProcessor.from_pretrained(TINY_WORLD / "policy").tokenizer
    count = sizes.prompts * sizes.rewrites
    prompt = tokenizer("a big red circle on a white background " * sizes.prompt_tokens)["input_ids"]
    ids = torch.tensor([prompt[: sizes.prompt_tokens]] * count, device=policy.device)
    config = GenerationConfig(
        max_new_tokens=sizes.tokens,
        min_new_tokens=sizes.tokens,
        do_sample=True,
        top_k=0,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        suppress_tokens=[policy.config.image_token_id],
        **generation,
    )

    def generate() -> None:
        with torch.no_grad():
            policy.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)

    first = clock.measure(generate)["seconds"]
    measured = clock.measure(generate)
    row: Row = {**measured, "first_seconds": first, "ms_a_token": 1e3 * measured["seconds"] / sizes.tokens}
    print(
        f"{name:>56}: {row['seconds']:6.2f} s, {row['ms_a_token']:5.1f} ms a token, the first time {first:6.2f} s, "
        f"{row['gigabytes']:6.2f} GB",
        flush=True,
    )
    return row


class StepSeconds(TrainerCallback):
    """Measures the seconds of the last training step."""

    seconds = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.begin = now()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds = now() - self.begin


def now() -> float:
    """Return the time in seconds, when the GPU has done what it was told so far."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def training(clock: Clock, sizes: Sizes, device: str, until: float) -> dict[str, Row]:
    """Measure the seconds in which TRL trains the smaller policy on the completions of a step, by micro-batch."""
    names = {f"micro-batches of {size}": size for size in sizes.micro_batches}
    return {
        name: clock.attempt(name, lambda name=name, size=size: train(clock, sizes, device, name, size), until)
        for name, size in names.items()
    }


def train(clock: Clock, sizes: Sizes, device: str, name: str, micro_batch: int) -> Row:
    """Train with gradient checkpointing on completions that took no time to write, with rewards that took none."""
    gc.collect()  # the policy that was measured before
    count = sizes.prompts * sizes.rewrites

    def repeat_the_prompt(_, input_ids: torch.Tensor, **kwargs) -> torch.Tensor:
        return torch.cat([input_ids, input_ids[:, -1:].expand(-1, sizes.tokens)], dim=1)

    with tempfile.TemporaryDirectory() as folder:
        args = GRPOConfig(
            output_dir=folder,
            per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=count // micro_batch,
            num_generations=sizes.rewrites,
            max_completion_length=sizes.tokens,
            gradient_checkpointing=True,
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            **SETTINGS,
        )
        trainer = GRPOTrainer(
            random_policy(sizes.policies[0], sizes.dtype, device),
            lambda completions, **_: torch.rand(len(completions)).tolist(),
            args,
            train_dataset=Dataset.from_dict({"prompt": ["a big red circle " * (sizes.prompt_tokens // 4)] * count}),
            processing_class=AutoProcessor.from_pretrained(TINY_WORLD / "policy"),
            peft_config=LoraConfig(**LORA),
        )
        trainer.remove_callback(PrinterCallback)
        step = StepSeconds()
        trainer.add_callback(step)
        with patch.object(Qwen2VLForConditionalGeneration, "generate", repeat_the_prompt):
            memory = clock.measure(trainer.train)["gigabytes"]
    print(f"{name:>56}: {step.seconds:6.2f} s, {memory:6.2f} GB", flush=True)
    return {"seconds": step.seconds, "gigabytes": memory}


class LastStep(TrainerCallback):
    """Measures the last step of a `PromptEnhancerTrainer`; the one before warms up.

    Attributes:
        seconds: of the whole step ("step"), and by activity: "write", "wait" (for images), "render", "score".
    """

    def __init__(self, trainer: PromptEnhancerTrainer):
        self.trainer = trainer
        self.seconds: dict[str, float] = {}
        self.images = 0

    def so_far(self) -> dict[str, float]:
        """Return the seconds since the start of the run, and now."""
        return {"step": now(), **self.trainer.times.seconds, **self.trainer.worker.seconds}

    def on_step_begin(self, args, state, control, **kwargs):
        self.before, self.images_before = self.so_far(), self.trainer.worker.images_drawn

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds = {name: value - self.before[name] for name, value in self.so_far().items()}
        self.images = self.trainer.worker.images_drawn - self.images_before


def whole_step(clock: Clock, sizes: Sizes, policy: str, pipeline: Pipeline, batch: int, device: str) -> Row:
    """Measure a step of `PromptEnhancerTrainer` whose images take four steps without guidance, and its parts.

    Every completion is rendered. The 2B policy trains on all completions at once, a larger one on those of a prompt.
    """
    gc.collect()  # the policy that was measured before
    renderer = as_renderer(sizes, pipeline, 4, guidance=1.0, render_batch_size=batch)
    worker = LocalWorker(renderer, {"clip": load_scorer(list(sizes.scorers.values())[-1], device)})
    numbers = iter(range(10**9))
    at_once = sizes.prompts if policy == sizes.policies[0] else 1
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("brushup.training.trainer.parse_answer", lambda *_, **__: f"a red circle, number {next(numbers)}"),
    ):
        args = PromptEnhancerConfig(
            output_dir=folder,
            per_device_train_batch_size=sizes.rewrites * at_once,
            gradient_accumulation_steps=sizes.prompts // at_once,
            num_generations=sizes.rewrites,
            max_completion_length=sizes.tokens,
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            **SETTINGS,
        )
        trainer = PromptEnhancerTrainer(
            random_policy(policy, sizes.dtype, device),
            worker,
            [RewardSpec("clip")],
            args,
            train_dataset=load_prompts(str(TINY_WORLD / "train.jsonl")),
            processing_class=AutoProcessor.from_pretrained(TINY_WORLD / "policy"),
            peft_config=LoraConfig(**LORA),
        )
        trainer.remove_callback(PrinterCallback)
        step = LastStep(trainer)
        trainer.add_callback(step)
        memory = clock.measure(trainer.train)["gigabytes"]
    seconds = step.seconds
    seconds["train"] = seconds["step"] - seconds["write"] - seconds["wait"]
    parts = ", ".join(f"{name} {value:.2f} s ({value / seconds['step']:.0%})" for name, value in seconds.items())
    print(f"{'Qwen2-VL ' + policy:>56}: {parts}; {step.images} images, {memory:.1f} GB", flush=True)
    return seconds | {"images": step.images, "gigabytes": memory}
