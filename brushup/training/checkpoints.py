"""Checkpoints: where a run goes on, and saving one when a run has to stop."""

import json
import random
import re
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState

from brushup.evaluation.arm import Arm
from brushup.evaluation.validation import Validation


RUN_ID = "run_id"  # a file in output_dir
NO_MARK = {"args": {"run_id": None}}  # checkpoints from before 2026-12


class RunMark(TrainerCallback, ExportableState):
    """Marks the checkpoints of a run: a later run in the same folder does not go on from them.

    Args:
        run_id: default: a new one. transformers restores that of a checkpoint.

    Attributes:
        random_states: at the end of the last step, of Python, NumPy, PyTorch and each GPU.
    """

    def __init__(self, run_id: str | None = None):
        self.run_id = run_id or uuid.uuid4().hex
        self.random_states: tuple | None = None

    def state(self) -> dict[str, Any]:
        return {"args": {"run_id": self.run_id}, "attributes": {}}

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            Path(args.output_dir, RUN_ID).write_text(self.run_id)

    def on_step_end(self, args, state, control, **kwargs):
        gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self.random_states = random.getstate(), np.random.get_state(), torch.get_rng_state(), gpus

    def rewind(self) -> None:
        """Set the random states to those of the last step's end: a step that is not finished has drawn from them."""
        if self.random_states:
            python, numpy, pytorch, gpus = self.random_states
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_rng_state(pytorch)
            if gpus:
                torch.cuda.set_rng_state_all(gpus)


def is_whole(checkpoint: Path) -> bool:
    """Return whether a checkpoint was written to its end: a killed run leaves `trainer_state.json` out, or cut off."""
    return _state_of(checkpoint) is not None


def last_checkpoint(output_dir: str | Path) -> str | None:
    """Return the newest whole checkpoint of the run that was last in the folder; None if it has none."""
    mark = Path(output_dir, RUN_ID)
    run_id = mark.read_text() if mark.is_file() else None
    steps = {}
    for folder in Path(output_dir).glob("checkpoint-*"):
        number = re.fullmatch(r"checkpoint-(\d+)", folder.name)
        state = _state_of(folder) if number else None
        callbacks = (state or {}).get("stateful_callbacks", {})
        if state is not None and callbacks.get("RunMark", NO_MARK)["args"]["run_id"] == run_id:
            steps[int(number[1])] = str(folder)
    return steps[max(steps)] if steps else None


def _state_of(checkpoint: Path) -> dict[str, Any] | None:
    try:
        return json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
    except (OSError, ValueError):
        return None


def save_now(trainer: Trainer) -> str:
    """Save a checkpoint of the last finished step, on all ranks together, and return how to go on from it."""
    step = trainer.state.global_step
    folder = Path(trainer.args.output_dir) / f"checkpoint-{step}"
    exists = broadcast_object_list([last_checkpoint(trainer.args.output_dir) == str(folder)])[0]
    if step and not exists:
        trainer.callback(RunMark).rewind()
        trainer._save_checkpoint(trainer.model, trial=None)
    return f". Go on later with --resume_from_checkpoint {folder}" if step else ""


def load_arms(checkpoint: Path, validation: Validation) -> dict[int, Arm]:
    """Return the outcomes, by step, of the validations before this checkpoint, from the files beside it."""
    step = (_state_of(checkpoint) or {"global_step": 0})["global_step"]
    files = {int(file.stem.split("_")[1]): file for file in checkpoint.parent.glob("validation_*.json")}
    arms = {before: validation.load(file) for before, file in files.items() if before < step}
    return {before: arm for before, arm in arms.items() if arm}
