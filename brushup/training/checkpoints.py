"""Checkpoints: where a run goes on, and saving one when a run has to stop."""

from pathlib import Path

from accelerate.utils import broadcast_object_list
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from brushup.evaluation.arm import Arm
from brushup.evaluation.validation import Validation


def last_checkpoint(output_dir: str | Path) -> str | None:
    """Return the newest whole checkpoint; one that a killed run left half written lacks its `trainer_state.json`."""
    whole = [file.parent for file in Path(output_dir).glob(f"checkpoint-*/{TRAINER_STATE_NAME}")]
    return str(max(whole, key=lambda folder: int(folder.name.split("-")[1]))) if whole else None


def save_now(trainer: Trainer) -> str:
    """Save a checkpoint of the last finished step, on all ranks together, and return how to go on from it."""
    step = trainer.state.global_step
    folder = Path(trainer.args.output_dir) / f"checkpoint-{step}"
    exists = broadcast_object_list([folder.is_dir()])[0]
    if step and not exists:
        trainer._save_checkpoint(trainer.model, trial=None)
    return f". Go on later with --resume_from_checkpoint {folder}" if step else ""


def load_arms(checkpoint: Path, validation: Validation) -> dict[int, Arm]:
    """Return the outcomes, by step, of the validations before this checkpoint, from the files beside it."""
    state = checkpoint / TRAINER_STATE_NAME
    step = TrainerState.load_from_json(state).global_step if state.is_file() else 0
    files = {int(file.stem.split("_")[1]): file for file in checkpoint.parent.glob("validation_*.json")}
    arms = {before: validation.load(file) for before, file in files.items() if before < step}
    return {before: arm for before, arm in arms.items() if arm}
