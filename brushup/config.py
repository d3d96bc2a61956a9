"""The settings that Brushup adds to TRL's: each is a YAML key and a flag. Whole examples: recipes/*.yaml."""

import os
from dataclasses import MISSING, dataclass, field
from typing import Any

from accelerate.utils import parse_flag_from_env
from trl import GRPOConfig

from brushup.checks import check_settings
from brushup.common import USE_CPU, default_device
from brushup.masking import masked


def setting(text: str, default: Any = MISSING, choices: list | None = None, kw_only: bool = False) -> Any:
    """Return a dataclass field with this help text; it is a YAML key and a flag, required if it has no default."""
    metadata = {"help": text} | ({"choices": choices} if choices else {})
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata, kw_only=kw_only)
    return field(default=default, metadata=metadata, kw_only=kw_only)


REWARD_SETTINGS = ("reward_kwargs", "reward_transforms", "reward_gates", "gain_gates")


@dataclass
class PromptConfig:
    """The held-out prompts, and how prompt files are read."""

    validation_prompts: str = setting(
        "Held-out prompts: a .jsonl, .json, .csv, .tsv, .txt or .parquet file, or a Hub data set (its split "
        "`validation`)."
    )
    prompt_column: str = setting("The column with the user's prompt.", default="user_prompt")
    skip_bad_rows: bool = setting(
        "Leave bad rows out, and say how many, instead of stopping at the first.", default=False
    )

    def __post_init__(self):
        check_settings(self)


@dataclass
class DataConfig(PromptConfig):
    """All prompts of a training run."""

    train_prompts: str = setting(
        "Prompts to train on: a file like `validation_prompts`, or a Hub data set (its split `train`).", kw_only=True
    )
    max_train_samples: int | None = setting("Train on the first so many prompts.", default=None)
    balance_by: str | None = setting(
        "`category` or `difficulty`: its values take turns, so that each batch has all of them alike.",
        default=None,
        choices=["category", "difficulty"],
    )
    curriculum: bool = setting("Easy prompts first, by the column `difficulty`.", default=False)


@dataclass
class RenderConfig:
    """The generator that renders every rewrite."""

    generator: str = setting("A diffusers text-to-image pipeline: Hub id or folder.")
    generator_init_kwargs: dict[str, Any] | str | None = setting(
        "Arguments of the pipeline's `from_pretrained`, e.g. {text_encoder_3: null, tokenizer_3: null} for "
        "Stable Diffusion 3 without T5.",
        default=None,
    )
    render_kwargs: dict[str, Any] | str | None = setting(
        "Arguments of the pipeline's call: num_inference_steps, guidance_scale, height, ...", default=None
    )
    eval_render_kwargs: dict[str, Any] | str | None = setting(
        "Arguments in place of those in render_kwargs for images that are judged or shown, not trained on (held-out "
        "prompts, evaluate.py, enhance.py, demo.py), e.g. {num_inference_steps: 28}; default: none.",
        default=None,
    )
    render_batch_size: int | None = setting(
        "Images rendered at once; default 32 on a GPU, 8 on a CPU. Out of memory halves it.", default=None
    )
    render_device: str | None = setting(
        "Where to render and to score: default cuda, else mps, else cpu.", default=None
    )
    render_dtype: str = setting("The generator's torch dtype, e.g. bfloat16.", default="float32")
    scheduler: str | None = setting(
        "A diffusers scheduler by class name, e.g. DPMSolverMultistepScheduler; it gets the settings of the "
        "generator's own, which is the default. One that adds noise which the generator does not seed is refused.",
        default=None,
    )
    scheduler_kwargs: dict[str, Any] | str | None = setting(
        "Settings of the scheduler that replace the generator's, e.g. {shift: 5.0}.", default=None
    )
    generator_lora: str | None = setting(
        "LoRA weights to fuse into the generator: Hub id, folder or .safetensors file.", default=None
    )
    generator_memory: list[str] = setting(
        "Savers of GPU memory, at the cost of time: attention_slicing, vae_slicing, vae_tiling, and "
        "model_cpu_offload or sequential_cpu_offload.",
        default=[],
    )
    compile_generator: bool = setting(
        "torch.compile for the denoiser and the decoder. It takes minutes at the start (twice, if eval_render_kwargs "
        "change the size or turn guidance on), and then every batch has render_batch_size images: a smaller one is "
        "filled up.",
        default=False,
    )
    gpu_memory_fraction: float = setting(
        "Share of the render GPU's memory that this process may take, above 0 to 1.", default=0.85
    )
    worker: str = setting(
        "Who renders and scores: `local` (the training process), `http://host:port` (recipes/serve.py), `auto` (a "
        "service on the GPUs of this machine that training leaves free; with none free, `local`), or `spawn` (a "
        "service on the CPU).",
        default="local",
    )
    worker_timeout: float = setting(
        "Seconds for all images of a training batch, the time that a service needs to come back included; less "
        "than ddp_timeout. A single batch of a service may take a sixth of it.",
        default=900.0,
    )

    def __post_init__(self):
        check_settings(self, "generator_init_kwargs", "render_kwargs", "eval_render_kwargs", "scheduler_kwargs")

    @property
    def device(self) -> str:
        """Where images are rendered and scored."""
        return self.render_device or default_device()

    @property
    def batch_size(self) -> int:
        """How many images are rendered at once."""
        return self.render_batch_size or (32 if self.device.startswith("cuda") else 8)

    @property
    def render_timeout(self) -> float:
        """Seconds that one batch of images may take in the service; then its jobs failed."""
        return self.worker_timeout / 6

    def image_settings(self) -> dict[str, Any]:
        """Return all that decides, with the prompt and the seed, how an image looks."""
        names = (
            *("generator", "generator_init_kwargs", "render_kwargs", "eval_render_kwargs", "render_dtype"),
            *("scheduler", "scheduler_kwargs", "generator_lora"),
        )
        return {name: getattr(self, name) for name in names}


@dataclass
class RewardConfig:
    """The rewards, by name."""

    reward_funcs: list[str] = setting(
        "Rewards by name (see docs/rewards.md), or `package.module:attribute`, or "
        "`path/to/file.py:attribute`. Their weights are `reward_weights`; weight 0 only monitors.",
        default=["clip"],
    )
    reward_kwargs: dict[str, Any] | str | None = setting(
        "Keyword arguments of each reward: {clip: {model_name: ViT-L-14, pretrained: openai}}.", default=None
    )
    reward_transforms: dict[str, Any] | str | None = setting(
        "The steps from a reward to its weighted value, by name: {clip: {clamp: [0.1, 0.4]}}, {hpsv2: {scale: "
        "[0.2, 0.3]}} (that range becomes 0 to 1), {aesthetic: zscore} (by the mean and deviation of the run so "
        "far); several apply in their order.",
        default=None,
    )
    reward_gates: dict[str, Any] | str | None = setting(
        "The value that a reward must reach, else the total is 0: {clip: 0.28, safety: 1}; weight 0 makes it "
        "a gate and nothing else.",
        default=None,
    )
    gain_gates: dict[str, Any] | str | None = setting(
        "The same for an image reward's gain over the image of the user's prompt (in the second turn, of the draft) "
        "at the same seed: {clip: 0.0} asks for no worse an image.",
        default=None,
    )

    def __post_init__(self):
        check_settings(self, *REWARD_SETTINGS)


@dataclass
class ScoringConfig(RewardConfig):
    """How held-out prompts are judged, in training and in evaluation alike."""

    validation_images_per_prompt: int = setting(
        "Images rendered of each held-out prompt, from the same seeds each time.", default=1
    )
    success_threshold: float | None = setting(
        "`success_rate` is the share of held-out prompts with a reward above this.", default=None
    )
    checker: str | None = setting(
        "Ground truth for held-out prompts, never a reward: `package.module:function` or "
        "`path/to/file.py:function`, called with (images, scenes), where `scene` is a column of the prompts; it "
        "returns a bool for each image. The tiny world has one.",
        default=None,
    )


@dataclass
class PromptEnhancerConfig(ScoringConfig, GRPOConfig):
    """TRL's `GRPOConfig` and what `PromptEnhancerTrainer` needs besides."""

    images_per_prompt: int = setting(
        "Images rendered of each rewrite (K); its image rewards are averaged over them.", default=1
    )
    turns: int = setting(
        "2: every other generation batch is of the second turn. The policy looks at the image of a rewrite that it "
        "has just written, and keeps or revises it; the reward is the gain over it.",
        default=1,
        choices=[1, 2],
    )
    max_staleness: int = setting(
        "Optimizer steps by which rewrites may be older than the policy that trains on them. 1: the next step's "
        "rewrites are written before this step is trained on, and rendered meanwhile; importance sampling "
        "corrects for the update in between. Pays with a worker on other devices.",
        default=0,
        choices=[0, 1],
    )
    generate_in_parts: str | None = setting("Gone: see steps_per_generation.", default=None)
    lookahead: str | None = setting("Gone: see max_staleness.", default=None)
    log_gain: bool = setting(
        "Render the users' prompts too, once for all rewrites of a group and from their seeds, and log what "
        "the rewrites gain; a gain gate does so anyway.",
        default=False,
    )
    reward_hacking_window: int = setting(
        "Steps over which training looks for reward hacking: the reward rises, but a monitor (a reward of weight "
        "0) or the checker falls, or rewrites grow long, repeat themselves or are cut; 0: it does not look.",
        default=20,
    )
    stop_on_reward_hacking: bool = setting(
        "Stop at the first sign of it, with a checkpoint, instead of warning only.", default=False
    )
    log_images_steps: int = setting(
        "Save sample images, the rewrites' beside the user prompt's, to output_dir/images every so many "
        "steps, and show them in the trackers of `report_to`; 0: never.",
        default=0,
    )
    max_failed_batches: int = setting(
        "Stop, on all ranks, after so many batches in a row of which no row could be scored.", default=3
    )
    num_generations_eval: int | None = setting(
        "TRL's; validation takes the likeliest answer, so there is one a prompt.", default=1
    )
    restore_callback_states_from_checkpoint: bool = setting(
        "transformers'; a resumed run goes on with its reward statistics.", default=True
    )

    def __post_init__(self):
        check_settings(self, *REWARD_SETTINGS)
        if self.generate_in_parts is not None:
            raise ValueError(
                f"generate_in_parts: {self.generate_in_parts} is now TRL's steps_per_generation: set "
                "steps_per_generation to gradient_accumulation_steps divided by the number of parts, e.g. 1"
            )
        if self.lookahead is not None:
            raise ValueError(f"lookahead: {self.lookahead} is now called max_staleness: {self.lookahead}")
        if self.reward_hacking_window == 1:
            raise ValueError("reward_hacking_window: 1 is neither 0 nor at least 2")
        # transformers would take a GPU that accelerate was told to leave alone, and the other way round.
        self.use_cpu = self.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU")
        os.environ[USE_CPU] = str(self.use_cpu).lower()  # not Accelerate's variable, which would turn DeepSpeed off
        GRPOConfig.__post_init__(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings for trackers, as TRL does, with secrets masked at any depth."""
        return masked(super().to_dict())
