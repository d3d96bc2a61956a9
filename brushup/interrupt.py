"""Stopping and going on: Ctrl-C and SIGTERM end training after the running step, with a checkpoint."""

import ctypes
import os
import signal
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback


def last_checkpoint(output_dir: str) -> str | None:
    """The newest whole checkpoint; if a run was killed while it wrote one, that lacks its `trainer_state.json`."""
    whole = [file.parent for file in Path(output_dir).glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda folder: int(folder.name.split("-")[1]))) if whole else None


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint and ends training, on all ranks at the same step, once one of them got SIGINT or SIGTERM.

    A second Ctrl-C on a single process quits at once. `received` is the signal, or None.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._former: dict = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._former = {number: signal.signal(number, self._remember) for number in (signal.SIGINT, signal.SIGTERM)}
        if sys.platform == "linux" and PartialState().num_processes == 1:
            # A launcher that is killed takes its ranks along only if there are several: ask for SIGTERM when it dies.
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG

    def _remember(self, number, frame):
        if self.received == number == signal.SIGINT and PartialState().num_processes == 1:
            raise KeyboardInterrupt
        if self.received is None:  # launchers repeat it
            self.received = signal.Signals(number)
            message = f"\n{self.received.name}: a checkpoint follows when this step is done\n"
            if PartialState().is_main_process:
                os.write(2, message.encode())  # print is not safe in a signal handler

    def on_step_end(self, args, state, control, **kwargs):
        got = torch.tensor([float(self.received or 0)], device=PartialState().device)
        got = int(reduce(got, "sum").item())
        if got:
            self.received = self.received or signal.SIGTERM
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._former.items():
            signal.signal(number, handler)
