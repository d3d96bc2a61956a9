"""What the policy thought of the tokens that it sampled, noted down while it writes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import PreTrainedModel


class SampledLogProbs:
    """Log-probabilities of the tokens that were sampled at a temperature, inside of `recording`."""

    def __init__(self, temperature: float):
        self.temperature = temperature
        self._columns: list[torch.Tensor] = []
        self._next: torch.Tensor | None = None

    def _note(self, module, args, kwargs, output) -> None:
        # Each pass gets the tokens that were sampled from the one before.
        if self._next is not None:
            self._columns.append(self._next.gather(-1, kwargs["input_ids"][:, -1:]))
        self._next = torch.log_softmax(output.logits[:, -1].float() / self.temperature, dim=-1)

    def of(self, completion_ids: list[list[int]]) -> list[list[float]]:
        """A log-probability for each token of `completion_ids`, which is what was written."""
        last = torch.tensor([ids[-1:] for ids in completion_ids], device=self._next.device)
        table = torch.cat([*self._columns, self._next.gather(-1, last)], dim=1).tolist()
        return [row[: len(ids)] for row, ids in zip(table, completion_ids, strict=True)]


@contextmanager
def recording(policy: PreTrainedModel | PeftModel, temperature: float) -> Iterator[SampledLogProbs]:
    """Notes what `policy.generate` samples, once. It costs one softmax a token, and no further pass over the answers.

    These are the probabilities by which the tokens were drawn, up to the banned tokens, truncation (`top_k`, `top_p`)
    and penalties, which TRL's log-probabilities leave out as well.
    """
    model = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    noted = SampledLogProbs(temperature)
    hook = model.register_forward_hook(noted._note, with_kwargs=True)
    try:
        yield noted
    finally:
        hook.remove()
