"""Trackers (wandb, trackio, TensorBoard): all settings, and sample images beside the metrics."""

import importlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import Trainer, TrainerCallback
from transformers.integrations import (
    TensorBoardCallback,
    get_available_reporting_integrations,
    get_reporting_integration_callbacks,
)
from trl import GRPOTrainer

from brushup.common import markdown_table, thumbnail
from brushup.config import masked
from brushup.evaluation.sheet import labelled_grid
from brushup.training.rollout import RenderedRows, Rollout, current_prompt
from brushup.training.scoring import ScoredBatch


SHOWN_PROMPTS = 4  # user prompts on each sheet of sample images


@dataclass
class Sample:
    """A rewrite with its image and reward, and the image of the user prompt, or of the `draft` that it revises, from
    the same seed (None: it failed)."""

    user_prompt: str
    rewrite: str
    reward: float
    image: Image.Image
    original: Image.Image | None
    draft: str | None = None


def check_trackers(report_to: list[str]) -> None:
    """Check the trackers before any model is loaded; transformers would do so after.

    Raises:
        ValueError: a tracker is unknown to transformers.
        ImportError: a tracker is not installed.
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
        *settings: dataclasses. Values that look like secrets are masked.
    """

    def __init__(self, trainer: Trainer, *settings: Any):
        self.trainer = trainer
        by_name = {name: value for config in settings for name, value in asdict(config).items()}
        self.settings = masked(by_name)

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


def tensorboard_writer(trainer: Trainer) -> Any:
    """Return the `SummaryWriter` of transformers' callback; None if TensorBoard is not in use, or closed."""
    writers = [c.tb_writer for c in trainer.callback_handler.callbacks if isinstance(c, TensorBoardCallback)]
    return writers[0] if writers else None


def sample_grid(samples: Sequence[Sample]) -> Image.Image:
    """Return a sheet with a row for each user prompt: its image, then those of its rewrites with their rewards."""
    rows: dict[str, list[tuple[Image.Image, str]]] = {}
    for sample in samples:
        if sample.user_prompt not in rows:
            before = f"draft: {sample.draft}" if sample.draft else "original"
            rows[sample.user_prompt] = [(sample.original, before)] if sample.original else []
        rows[sample.user_prompt].append((sample.image, f"{sample.reward:.2f}  {sample.rewrite}"))
    return labelled_grid(list(rows.items()))


def save_samples(trainer: GRPOTrainer, rollout: Rollout, rendered: RenderedRows, batch: ScoredBatch) -> None:
    """Save a sheet of sample images as `images/step-N.png`, and show it in the trackers; on the main process only.

    It has the first image of each rewrite of up to four user prompts, beside that of the user prompt, or of its draft.
    """
    shown = rollout.current_prompts[:SHOWN_PROMPTS]
    replaced = [(current_prompt(row), row["user_prompt"]) for row in rollout.rows]
    before = {prompts: rendered.before[prompts][0].image for prompts in shown if prompts in rendered.before}
    values = torch.tensor(batch.values[: len(rollout.rows)], dtype=torch.float32)
    totals = (values * trainer.reward_weights.cpu()).nansum(dim=1).tolist()
    failed = values.isnan().all(dim=1).tolist()
    samples = [
        Sample(row["user_prompt"], rewrite, total, results[0].image, before.get(prompts), row.get("draft"))
        for row, prompts, results, rewrite, total, is_out in zip(
            rollout.rows, replaced, rendered.results, rollout.rewrites, totals, failed, strict=True
        )
        if prompts in shown and results and not is_out
    ]
    if samples:
        folder = Path(trainer.args.output_dir) / "images"
        folder.mkdir(parents=True, exist_ok=True)
        grid = sample_grid(samples)
        grid.save(folder / f"step-{rollout.step:06d}.png")
        log_samples(trainer, samples, grid)


def log_samples(trainer: Trainer, samples: Sequence[Sample], grid: Image.Image) -> None:
    """Send the samples of this step as the table `pictures` to the trackers in use; on the main process only.

    TensorBoard has no tables with images: it gets the grid, and the table as text.
    """
    step = trainer.state.global_step
    for name in {"wandb", "trackio"} & set(trainer.args.report_to):
        tracker = importlib.import_module(name)  # both have the same interface
        columns = ["step", "user_prompt", "rewrite", "reward", "picture", "original"]
        rows = [
            [step, sample.user_prompt, sample.rewrite, sample.reward]
            + [tracker.Image(thumbnail(image)) if image else None for image in (sample.image, sample.original)]
            for sample in samples
        ]
        tracker.log({"pictures": tracker.Table(columns=columns, data=rows), "train/global_step": step})
    if writer := tensorboard_writer(trainer):
        rows = [[sample.user_prompt, sample.rewrite, f"{sample.reward:.3f}"] for sample in samples]
        writer.add_text("pictures", markdown_table([["user prompt", "rewrite", "reward"], *rows]), step)
        writer.add_image("pictures", np.asarray(grid), step, dataformats="HWC")
