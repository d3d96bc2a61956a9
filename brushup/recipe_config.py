"""The settings of the recipes that come after training: evaluate.py, demo.py, serve.py."""

from dataclasses import dataclass
from typing import Any

from brushup.checks import check_settings
from brushup.config import REWARD_SETTINGS, RewardConfig, ScoringConfig, setting


ASKING_SETTINGS = ("chat_template_kwargs", "generation_kwargs")


@dataclass
class AskingConfig:
    """How policies were asked in the run, which evaluation and use repeat."""

    chat_template_kwargs: dict[str, Any] | str | None = setting("Arguments of the chat template.", default=None)
    generation_kwargs: dict[str, Any] | str | None = setting("Further arguments of `generate`.", default=None)
    repetition_penalty: float = setting("Above 1, tokens that were there before become less likely.", default=1.0)


@dataclass
class EvaluationConfig(AskingConfig, ScoringConfig):
    """The settings of a run that recipes/evaluate.py reads, and its own."""

    output_dir: str = setting("Where results.json and report.html go: the run's own folder.", kw_only=True)
    model_name_or_path: str = setting("The policy before training.", kw_only=True)
    adapter: list[str] | None = setting(
        "The trained policies: adapters or models, Hub ids or folders; default: `output_dir`.", default=None
    )
    dtype: str | None = setting("The policies' torch dtype; default: bfloat16 on CUDA.", default=None)
    reward_weights: list[float] | None = setting("Of `reward_funcs`; default 1 each.", default=None)
    eval_reward_funcs: list[str] = setting("Further rewards, which the policy was not trained on.", default=[])
    seed: int = setting("Decides the seeds of the images.", default=42)
    max_completion_length: int = setting("Tokens that an answer may have.", default=256)
    per_device_eval_batch_size: int = setting("Answers written at once.", default=8)
    ddp_timeout: int = setting("Seconds that ranks wait for each other.", default=1800)
    best_of: int = setting(
        "Rewrites of each policy and prompt, the likeliest and sampled ones, of which the one with the highest reward "
        "makes an arm of its own; 0: no such arm.",
        default=8,
    )
    temperature: float = setting("Of that sampling, as in training.", default=1.0)
    turns: int = setting(
        "2: arms of revisions, too: each policy looks at the image of its rewrite and revises it.",
        default=1,
        choices=[1, 2],
    )
    transfer_generator: str | None = setting(
        "Another generator, Hub id or folder, that renders the same prompts once more: does it help there, too? With "
        "`worker: local` only.",
        default=None,
    )
    transfer_init_kwargs: dict[str, Any] | str | None = setting(
        "The other generator's `generator_init_kwargs`.", default=None
    )
    transfer_render_kwargs: dict[str, Any] | str | None = setting(
        "The other generator's `render_kwargs`.", default=None
    )

    keep_images: bool = setting("Keep all images, lossless, in output_dir/evaluation_images.", default=False)
    images_from: str | None = setting(
        "A folder of such images, to score them again, with other `eval_reward_funcs` for instance: no generator is "
        "loaded.",
        default=None,
    )

    def __post_init__(self):
        check_settings(self, *REWARD_SETTINGS, *ASKING_SETTINGS, "transfer_init_kwargs", "transfer_render_kwargs")
        if self.keep_images and self.images_from:
            raise ValueError("keep_images: the images of images_from are kept already; leave one of the two out")


@dataclass
class DemoConfig(AskingConfig, RewardConfig):
    """The settings of a run that the demo reads, and its own."""

    model_name_or_path: str = setting("The policy before training.", kw_only=True)
    models: list[str] = setting("The trained policies: adapters or models, folders or Hub ids.", default=[])
    max_completion_length: int = setting("Tokens that an answer may have.", default=256)
    examples: str | None = setting(
        "Prompts to try; default: challenging.jsonl beside the run's `validation_prompts`, else these.", default=None
    )
    host: str = setting("Address to listen on; whoever can reach it can use the page.", default="127.0.0.1")
    port: int = setting("Port to listen on; 0: any that is free.", default=7860)

    def __post_init__(self):
        check_settings(self, *REWARD_SETTINGS, *ASKING_SETTINGS)


@dataclass
class ServeConfig:
    """The service: how many copies of the worker, and where."""

    num_replicas: int = setting("Copies of the generator and the image rewards.", default=1)
    host: str = setting(
        "Address to listen on. Any other than this machine's own needs BRUSHUP_TOKEN to be set.", default="127.0.0.1"
    )
    port: int = setting("Port to listen on; 0: any that is free.", default=8100)
    ray_address: str | None = setting(
        "A running Ray cluster to join (`auto`, or host:port); default: one on this machine alone.", default=None
    )

    def __post_init__(self):
        check_settings(self)
