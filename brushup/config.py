"""The settings that Brushup adds to TRL's: each is a YAML key and a flag. See recipes/*.yaml for whole examples."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from trl import GRPOConfig


def masked(settings: Any) -> Any:
    """The same, without the values of keys that name a secret, at any depth."""
    if isinstance(settings, dict):
        secret = re.compile(r"(token|secret|password|api_?key)$", re.IGNORECASE)
        return {
            key: f"<{key.upper()}>" if value and secret.search(key) else masked(value)
            for key, value in settings.items()
        }
    return [masked(value) for value in settings] if isinstance(settings, list) else settings


@dataclass
class DataConfig:
    """The prompts."""

    train_prompts: str = field(
        metadata={
            "help": "Prompts to train on: a .jsonl, .csv or .parquet file, or a Hub data set (its split `train`)."
        }
    )
    validation_prompts: str = field(metadata={"help": "Held-out prompts, likewise (its split `validation`)."})
    prompt_column: str = field(default="user_prompt", metadata={"help": "The column with the user's prompt."})
    skip_bad_rows: bool = field(
        default=False, metadata={"help": "Leave bad rows out, and say how many, instead of stopping at the first."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many prompts."})
    balance_by: str | None = field(
        default=None,
        metadata={
            "help": "`category` or `difficulty`: its values take turns, so that each batch has all of them alike.",
            "choices": ["category", "difficulty"],
        },
    )
    curriculum: bool = field(default=False, metadata={"help": "Easy prompts first, by the column `difficulty`."})


@dataclass
class RenderConfig:
    """The generator that draws every rewrite."""

    generator: str = field(metadata={"help": "A diffusers text-to-image pipeline: Hub id or folder."})
    generator_init_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Arguments of the pipeline's `from_pretrained`, e.g. {text_encoder_3: null, tokenizer_3: null} "
            "for Stable Diffusion 3 without T5."
        },
    )
    render_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Arguments of the pipeline's call: num_inference_steps, guidance_scale, height, ..."},
    )
    render_batch_size: int | str | None = field(  # None is an error; without it, a flag could only be a number
        default=8,
        metadata={
            "help": "Pictures drawn at once; `auto`: it starts with few, and doubles while that draws faster and fits."
        },
    )
    render_device: str | None = field(
        default=None, metadata={"help": "Where to draw and to score: default cuda, else mps, else cpu."}
    )
    render_dtype: str = field(default="float32", metadata={"help": "The generator's torch dtype, e.g. bfloat16."})
    scheduler: str | None = field(
        default=None,
        metadata={
            "help": "A diffusers scheduler by class name, e.g. DPMSolverMultistepScheduler; it gets the settings of "
            "the generator's own, which is the default. Not one that adds noise at each step to Stable Diffusion 3 or "
            "FLUX: they do not seed that noise."
        },
    )
    scheduler_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Settings of the scheduler that replace the generator's, e.g. {shift: 5.0}."}
    )
    generator_lora: str | None = field(
        default=None,
        metadata={"help": "LoRA weights to fuse into the generator: Hub id, folder or .safetensors file."},
    )
    generator_lora_scale: float = field(default=1.0, metadata={"help": "How strongly `generator_lora` is fused."})
    generator_memory: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What saves GPU memory at the cost of time: attention_slicing, vae_slicing, vae_tiling, and "
            "model_cpu_offload or sequential_cpu_offload."
        },
    )
    compile_generator: bool = field(
        default=False,
        metadata={
            "help": "torch.compile for the denoiser and the decoder. It takes minutes at the start, and then every "
            "batch has render_batch_size pictures: of a smaller one the last is drawn again and dropped."
        },
    )
    fuse_qkv: bool = field(
        default=False,
        metadata={"help": "One matrix product for queries, keys and values of the denoiser, at the cost of memory."},
    )
    gpu_memory_fraction: float = field(
        default=0.85, metadata={"help": "Share of the render GPU's memory that this process may take, above 0 to 1."}
    )

    originals_cache: str | None = field(
        default=None,
        metadata={
            "help": "Folder that keeps the pictures of the users' own prompts, so that each is drawn only once; "
            "recipes/evaluate.py has one by default (~/.cache/brushup/originals), training none."
        },
    )

    worker: str = field(
        default="local",
        metadata={
            "help": "Who draws and scores: `local` (the training process), `http://host:port` (recipes/serve.py), "
            "`auto` (a service on the GPUs of this machine that training leaves free; with none free, `local`), or "
            "`spawn` (a service on the CPU)."
        },
    )
    render_timeout: float = field(
        default=120.0, metadata={"help": "Seconds for one batch of pictures in the service; then its jobs failed."}
    )
    worker_timeout: float = field(
        default=900.0,
        metadata={
            "help": "Seconds for all pictures of a training batch, the time that a service needs to come back "
            "included; more than render_timeout, less than ddp_timeout."
        },
    )

    def __post_init__(self):
        for name in ("generator_init_kwargs", "render_kwargs", "scheduler_kwargs"):  # flags arrive as JSON
            value = vars(self)[name]
            setattr(self, name, json.loads(value) if isinstance(value, str) else value or {})
        size = self.render_batch_size
        if str(size).isdecimal() and int(size) > 0:
            self.render_batch_size = int(size)
        elif size != "auto":
            raise ValueError(f"render_batch_size: {size!r} is neither a whole number above 0 nor auto")

    def picture_settings(self) -> dict[str, Any]:
        """All that decides, with the prompt and the seed, what a picture looks like."""
        names = ("generator", "generator_init_kwargs", "render_kwargs", "render_dtype", "scheduler")
        return {
            name: getattr(self, name)
            for name in (*names, "scheduler_kwargs", "generator_lora", "generator_lora_scale")
        }


@dataclass
class RewardConfig:
    """The rewards, by name."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["clip"],
        metadata={
            "help": "Rewards by name (see rewards/__init__.py), or `package.module:attribute`, or "
            "`path/to/file.py:attribute`. Their weights are `reward_weights`; weight 0 only monitors."
        },
    )
    reward_kwargs: dict[str, Any] | str | None = field(
        default=None,
        metadata={"help": "Keyword arguments of each reward: {clip: {model_name: ViT-L-14, pretrained: openai}}."},
    )
    reward_transforms: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "What becomes of a reward before it is weighted, by name: {clip: {clamp: [0.1, 0.4]}}, "
            "{hpsv2: {scale: [0.2, 0.3]}} (that range becomes 0 to 1), {aesthetic: zscore} (by the mean and deviation "
            "of the run so far); several apply in their order."
        },
    )
    reward_gates: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "What a reward must reach, or the total is 0: {clip: 0.28, safety: 1}; weight 0 makes it a gate "
            "and nothing else."
        },
    )
    gain_gates: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "The same for an image reward's gain over the picture of the user's own prompt at the same seed: "
            "{clip: 0.0} asks for no worse a picture."
        },
    )

    def by_reward(self, setting: str) -> dict[str, Any]:
        """The setting `reward_kwargs`, `reward_transforms`, `reward_gates` or `gain_gates`: flags arrive as JSON."""
        value = vars(self)[setting]
        return dict(json.loads(value) if isinstance(value, str) else value or {})

    def kwargs_of_reward(self, name: str) -> dict[str, Any]:
        """The keyword arguments that `reward_kwargs` holds for the reward `name`."""
        return dict(self.by_reward("reward_kwargs").get(name, {}))


@dataclass
class PromptEnhancerConfig(RewardConfig, GRPOConfig):
    """TRL's `GRPOConfig` and what `PromptEnhancerTrainer` needs besides."""

    _VALID_DICT_FIELDS = GRPOConfig._VALID_DICT_FIELDS + [
        "reward_kwargs",
        "reward_transforms",
        "reward_gates",
        "gain_gates",
    ]

    images_per_prompt: int = field(
        default=1, metadata={"help": "Pictures drawn of each rewrite (K); its image rewards are averaged over them."}
    )
    generate_in_parts: int = field(
        default=1,
        metadata={
            "help": "Parts, of whole groups and micro-batches, in which each rank writes its rewrites: drawing begins "
            "after the first, and each is trained on once it is drawn, while the next are. Pays with a worker on "
            "other devices that takes about as long as the policy, or longer; learning is the same."
        },
    )
    lookahead: int = field(
        default=0,
        metadata={
            "help": "1: the next batch is written before this one is trained on, and drawn meanwhile; it is then one "
            "update old, for which importance sampling corrects. Pays with a worker on other devices.",
            "choices": [0, 1],
        },
    )
    log_gain: bool = field(
        default=False,
        metadata={
            "help": "Draw the users' own prompts too, once for all rewrites of a group and from their seeds, and log "
            "what the rewrites gain; a gain gate does so anyway."
        },
    )
    reward_hacking_window: int = field(
        default=20,
        metadata={
            "help": "Steps over which training looks for reward hacking: the reward rises, but a monitor (a reward of "
            "weight 0) or the checker falls, or rewrites grow long, repeat themselves or are cut; 0: it does not look."
        },
    )
    stop_on_reward_hacking: bool = field(
        default=False, metadata={"help": "Stop at the first sign of it, with a checkpoint, instead of warning only."}
    )
    log_images_steps: int = field(
        default=0,
        metadata={
            "help": "Save sample pictures, the rewrites' beside the user's own prompt's, to output_dir/images every "
            "so many steps, and show them in the trackers of `report_to`; 0: never."
        },
    )
    max_failed_batches: int = field(
        default=3,
        metadata={"help": "Stop, on all ranks, after so many batches in a row of which no row could be scored."},
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Load everything, run two steps, say what the run will take, and end; nothing is saved."},
    )
    num_generations_eval: int | None = field(
        default=1, metadata={"help": "TRL's; validation takes the likeliest answer, so there is one a prompt."}
    )
    validation_images_per_prompt: int = field(
        default=1, metadata={"help": "Pictures drawn of each validation prompt, at the same seeds each time."}
    )
    success_threshold: float | None = field(
        default=None,
        metadata={"help": "Validation reports `success_rate`: the share of prompts with a reward over this."},
    )
    checker: str | None = field(
        default=None,
        metadata={
            "help": "Ground truth for validation, never a reward: `package.module:function` or "
            "`path/to/file.py:function`, called with (images, scene) where `scene` is a validation column; returns "
            "a bool for each picture. The tiny world has one."
        },
    )

    def to_dict(self) -> dict[str, Any]:
        """As TRL's, for trackers; secrets are masked at any depth, e.g. in `reward_kwargs`."""
        return masked(super().to_dict())


@dataclass
class EvaluationConfig(RewardConfig):
    """What recipes/evaluate.py reads from the YAML file of a run, and what it takes besides."""

    validation_prompts: str = field(
        kw_only=True, metadata={"help": "Prompts to compare on: a file, or a Hub data set (its split `validation`)."}
    )
    prompt_column: str = field(default="user_prompt", metadata={"help": "The column with the user's prompt."})
    skip_bad_rows: bool = field(default=False, metadata={"help": "Leave bad rows out instead of stopping."})
    output_dir: str = field(
        kw_only=True, metadata={"help": "Where results.json, report.md and report.html go: the run's own."}
    )
    model_name_or_path: str = field(kw_only=True, metadata={"help": "The policy before training."})
    adapter: list[str] | None = field(
        default=None,
        metadata={"help": "The trained policies: adapters or models, Hub ids or folders; default: `output_dir`."},
    )
    dtype: str | None = field(default=None, metadata={"help": "The policies' torch dtype; default: bfloat16 on CUDA."})
    reward_weights: list[float] | None = field(default=None, metadata={"help": "Of `reward_funcs`; default 1 each."})
    eval_reward_funcs: list[str] = field(
        default_factory=list, metadata={"help": "Further rewards to look at, which the policy was not trained on."}
    )
    validation_images_per_prompt: int = field(
        default=1, metadata={"help": "Pictures drawn of each prompt, at the same seeds for each way of prompting."}
    )
    seed: int = field(default=42, metadata={"help": "Decides the seeds of the pictures."})
    max_completion_length: int = field(default=256, metadata={"help": "Tokens that an answer may have."})
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "Answers written at once."})
    success_threshold: float | None = field(
        default=None, metadata={"help": "`success_rate` is the share of prompts with a reward over this."}
    )
    checker: str | None = field(default=None, metadata={"help": "Ground truth, as in training; never a reward."})
    ddp_timeout: int = field(default=1800, metadata={"help": "Seconds that ranks wait for each other."})


@dataclass
class ServeConfig:
    """The service: how many copies of the worker, and where."""

    num_replicas: int = field(default=1, metadata={"help": "Copies of the generator and the image rewards."})
    gpus_per_replica: float | None = field(
        default=None,
        metadata={"help": "GPUs of each, fractions allowed; default 1 where there are GPUs, else 0 (on the CPU)."},
    )
    host: str = field(
        default="127.0.0.1",
        metadata={"help": "Address to listen on. Any other than this machine's own needs BRUSHUP_TOKEN to be set."},
    )
    port: int = field(default=8100, metadata={"help": "Port to listen on; 0: any that is free."})
    ray_address: str | None = field(
        default=None,
        metadata={"help": "A running Ray cluster to join (`auto`, or host:port); default: one on this machine alone."},
    )
