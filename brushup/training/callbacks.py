"""Callbacks of a run: it stops on a signal, must change its parameters, and shows its progress."""

import os
import signal
import time

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from brushup.common import end_with_parent
from brushup.console import say


SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}  # Ctrl-C, the end of a job, a closed terminal


class StopOnSignal(TrainerCallback):
    """Saves a checkpoint and ends training, on all ranks at the same step, once one of them got one of `SIGNALS`.

    A second Ctrl-C on a single process quits at once.

    Attributes:
        received: the signal, or None.
    """

    def __init__(self):
        self.received: signal.Signals | None = None
        self._former: dict = {}

    def on_train_begin(self, args, state, control, **kwargs):
        ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()  # nohup
        self._former = {number: signal.signal(number, self._remember) for number in SIGNALS - ignored}
        # A child that a reward forks, as multiprocessing does, would remember the signal that is to end it. A signal
        # that comes while it is forked waits until the child has its handlers.
        os.register_at_fork(before=self._block, after_in_parent=self._unblock, after_in_child=self._in_child)
        if PartialState().num_processes == 1:
            end_with_parent()  # a launcher that is killed takes its ranks along only if there are several

    def _remember(self, number, frame):
        if self.received == number == signal.SIGINT and PartialState().num_processes == 1:
            raise KeyboardInterrupt
        if self.received is None:  # launchers repeat it
            self.received = signal.Signals(number)
            message = f"\n{self.received.name}: a checkpoint follows when this step is done\n"
            if PartialState().is_main_process:
                os.write(2, message.encode())  # print is not safe in a signal handler

    def on_step_end(self, args, state, control, **kwargs):
        received = torch.tensor([float(self.received or 0)], device=PartialState().device)
        if int(reduce(received, "sum").item()):
            self.received = self.received or signal.SIGTERM
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_train_end(self, args, state, control, **kwargs):
        self._give_back()

    def _block(self) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._former)

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _in_child(self) -> None:
        self._give_back()
        self._unblock()

    def _give_back(self) -> None:
        while self._former:
            signal.signal(*self._former.popitem())


class ValidateAtTheEnd(TrainerCallback):
    """Asks for a validation of the last step, while the trackers are open, if the settings ask for none at all."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps and args.eval_strategy == IntervalStrategy.NO:
            control.should_evaluate = True


class ParametersMustChange(TrainerCallback):
    """Raises a RuntimeError at the end of training, on all ranks alike, if no parameter changed.

    A frozen adapter, no gradient, or a learning rate of 0 can be the reason.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._at_start = self._sums()
        self._changed = self._stepped = False

    def _sums(self) -> list[float]:
        return [_local_shard(parameter).double().sum().item() for parameter in self._trainable]

    def on_step_end(self, args, state, control, **kwargs):
        if not self._changed:
            self._stepped = True
            change = torch.tensor([float(self._sums() != self._at_start)], device=PartialState().device)
            self._changed = reduce(change, "sum").item() > 0

    def on_train_end(self, args, state, control, **kwargs):
        stopped_early = state.global_step < state.max_steps  # by a signal: it goes on later
        if self._stepped and not self._changed and not stopped_early:
            raise RuntimeError(
                "training changed no parameter: check learning_rate, use_peft and lora_target_modules, and whether "
                "the rewards of a group differ (frac_reward_zero_std)"
            )


def _local_shard(parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return the part of the parameter on this rank: a shard under ZeRO-3 and FSDP2, else all of it."""
    shard = getattr(parameter, "ds_tensor", parameter.detach())
    return shard.to_local() if isinstance(shard, torch.distributed.tensor.DTensor) else shard


class TrainingProgress(TrainerCallback):
    """Shows a bar on a terminal, and a line at each logging step: step, reward (or loss), malformed, failed."""

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            steps = {"total": state.max_steps, "initial": state.global_step, "unit": "step"}
            self.bar = tqdm(**steps, desc="training", disable=None)
            self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar.update(state.global_step - self.bar.n if not self.bar.disable else 0)

    def on_log(self, args, state, control, logs=None, **kwargs):
        measure = "reward" if logs.get("reward") is not None else "loss"
        if not state.is_world_process_zero or measure not in logs:
            return
        parts = [f"step {state.global_step:>4}/{state.max_steps}", f"{measure} {logs[measure]:.3f}"]
        means = {
            key.split("/")[1]: value for key, value in logs.items() if key.startswith("rewards/") and "/mean" in key
        }
        means |= {key.split("/")[1]: value for key, value in logs.items() if key.startswith("raw_rewards/")}
        turns = {turn: logs.get(f"turns/{turn}/reward") for turn in ("first", "second")}
        known = {turn: value for turn, value in turns.items() if value is not None}
        if known:  # then the means are of rewards and of gains
            parts[1:] = [f"{turn} turn {value:.3f}" for turn, value in known.items()]
        elif len(means) > 1:
            parts += [f"{name} {value:.3f}" for name, value in means.items() if value is not None]
        for name in ("malformed", "failed", "held_back"):
            if logs.get(f"render/{name}"):
                parts.append(f"{name.replace('_', ' ')} {logs[f'render/{name}']:.0%}")
        parts.append(f"{time.perf_counter() - self.start:.0f} s")
        say("  ".join(parts))

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.is_world_process_zero:
            shown = ("reward", "above_original", "success_rate", "quality_score", "checker_accuracy")
            shown += ("revised/reward", "revised/checker_accuracy")
            parts = [f"{name} {metrics[f'eval_{name}']:.3f}" for name in shown if f"eval_{name}" in metrics]
            parts += [
                f"{name} {metrics[f'eval_{name}']:.0%}"
                for name in ("malformed", "failed")
                if metrics.get(f"eval_{name}")
            ]
            say("  ".join([f"validation at step {state.global_step}", *parts]))

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.bar.close()
