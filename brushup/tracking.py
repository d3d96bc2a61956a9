"""What trackers (wandb, trackio, TensorBoard) get beyond the metrics: all settings, and tables of sample pictures."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image
from transformers import Trainer, TrainerCallback
from transformers.integrations import (
    TensorBoardCallback,
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)
from transformers.trainer_utils import IntervalStrategy

from brushup.config import masked
from brushup.grid import labelled_grid


LARGEST = 256  # pixels, the longer side of a picture in a table: a step has dozens, and they are kept as PNG


@dataclass
class Sample:
    """A rewrite that was drawn and scored, beside the user's own prompt drawn from the same seed (None: it failed)."""

    user_prompt: str
    rewrite: str
    reward: float
    picture: Image.Image
    original: Image.Image | None


def check_trackers(report_to: list[str]) -> None:
    """Raises, before any model is loaded, what transformers would raise after.

    Raises:
        ValueError: a tracker that transformers does not know.
        ImportError: one that is not installed.
    """
    get_reporting_integration_callbacks(report_to)
    available = get_available_reporting_integrations()
    if missing := [name for name in report_to if name not in available]:
        raise ImportError(
            f"report_to: {', '.join(missing)} is not installed here; wandb, trackio and tensorboard come with "
            'pip install -e ".[tracking]"'
        )


class Tracking(TrainerCallback):
    """Tells the trackers in use the settings that are not in `TrainingArguments`, under the keys of the YAML file.

    Args:
        trainer: the run.
        *settings: dataclasses. What looks like a secret is masked.
    """

    def __init__(self, trainer: Trainer, *settings: Any):
        self.trainer = trainer
        self.settings = masked({name: value for one in settings for name, value in asdict(one).items()})

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        if "wandb" in args.report_to:
            import wandb

            wandb.config.update(self.settings, allow_val_change=True)
        if "trackio" in args.report_to:
            import trackio

            trackio.config.update(self.settings)
            args.run_name = args.run_name or trackio.context_vars.current_run.get().name  # to be found again
        if writer := tensorboard_writer(self.trainer):
            writer.add_text("settings", f"```json\n{json.dumps(self.settings, indent=1)}\n```")

    def on_step_end(self, args, state, control, **kwargs):
        # The comparison after training needs a validation of the last step: it comes while the trackers are open.
        if state.global_step >= state.max_steps and args.eval_strategy == IntervalStrategy.NO and not args.dry_run:
            control.should_evaluate = True


def tensorboard_writer(trainer: Trainer) -> Any:
    """The `SummaryWriter` of transformers' callback; None if TensorBoard is not in use, or closed."""
    writers = [c.tb_writer for c in trainer.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]
    return writers[0] if writers else None


def sample_grid(samples: Sequence[Sample]) -> Image.Image:
    """A line for each user prompt: drawn as the user wrote it, then each of its rewrites with its reward."""
    lines: dict[str, list[tuple[Image.Image, str]]] = {}
    for sample in samples:
        if sample.user_prompt not in lines:
            lines[sample.user_prompt] = [(sample.original, "original")] if sample.original else []
        lines[sample.user_prompt].append((sample.picture, f"{sample.reward:.2f}  {sample.rewrite}"))
    return labelled_grid(list(lines.items()))


def log_samples(trainer: Trainer, samples: Sequence[Sample], grid: Image.Image) -> None:
    """Sends the samples of this step as the table `pictures` to the trackers in use; on the main process only.

    TensorBoard has no tables with pictures: it gets the grid, and the table as text.
    """
    step = trainer.state.global_step
    for name in {"wandb", "trackio"} & set(trainer.args.report_to):
        tracker = importlib.import_module(name)  # both have the same interface
        columns = ["step", "user_prompt", "rewrite", "reward", "picture", "original"]
        rows = [
            [step, sample.user_prompt, sample.rewrite, sample.reward]
            + [tracker.Image(small(picture)) if picture else None for picture in (sample.picture, sample.original)]
            for sample in samples
        ]
        tracker.log({"pictures": tracker.Table(columns=columns, data=rows), "train/global_step": step})
    if writer := tensorboard_writer(trainer):
        lines = [["user prompt", "rewrite", "reward"], ["---"] * 3]
        lines += [[sample.user_prompt, sample.rewrite, f"{sample.reward:.3f}"] for sample in samples]
        cells = [[" ".join(cell.split()).replace("|", r"\|") for cell in line] for line in lines]
        writer.add_text("pictures", "\n".join(f"| {' | '.join(line)} |" for line in cells), step)
        writer.add_image("pictures", np.asarray(grid), step, dataformats="HWC")


def small(picture: Image.Image) -> Image.Image:
    """A copy of at most `LARGEST` pixels a side."""
    picture = picture.convert("RGB")
    picture.thumbnail((LARGEST, LARGEST))
    return picture
