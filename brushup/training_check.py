"""A check on training itself: that parameters change."""

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from transformers import TrainerCallback


def _local(parameter: torch.nn.Parameter) -> torch.Tensor:
    """What this rank holds of a parameter: under ZeRO-3 and FSDP2 its shard, else all of it."""
    shard = getattr(parameter, "ds_tensor", parameter.detach())
    return shard.to_local() if isinstance(shard, torch.distributed.tensor.DTensor) else shard


class ParametersMustChange(TrainerCallback):
    """Training that changes no parameter (a frozen adapter, no gradient, learning rate 0) ends with an error.

    Raises:
        RuntimeError: at the end of training, on all ranks alike.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._at_start = self._sums()
        self._changed = self._stepped = False

    def _sums(self) -> list[float]:
        return [_local(parameter).double().sum().item() for parameter in self._trainable]

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
