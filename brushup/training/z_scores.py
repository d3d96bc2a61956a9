"""The running statistics of z-score transforms, in checkpoints."""

from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState


class ZScoreState(TrainerCallback, ExportableState):
    """Carries the state of the objective's z-scores through transformers' checkpoints.

    Attributes:
        values: as `Objective.state` returns it.
    """

    def __init__(self):
        self.values: dict[str, Any] = {}

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"values": self.values}}
