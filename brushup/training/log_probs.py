"""Log-probabilities of sampled tokens, recorded by a forward hook during `generate`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import PreTrainedModel


class LogProbRecorder:
    """Records the log-probabilities of the tokens that `generate` samples at a temperature."""

    def __init__(self, temperature: float):
        self.temperature = temperature
        self._columns: list[torch.Tensor] = []
        self._next: torch.Tensor | None = None

    def record(self, module, args, kwargs, output) -> None:
        """Record one forward pass; it is a forward hook of the model."""
        # The input of each pass ends with the tokens that were sampled from the pass before.
        if self._next is not None:
            self._columns.append(self._next.gather(-1, kwargs["input_ids"][:, -1:]))
        self._next = torch.log_softmax(output.logits[:, -1].float() / self.temperature, dim=-1)

    def for_tokens(self, completion_ids: list[list[int]]) -> list[list[float]]:
        """Return a log-probability for each token of the completions, which must be those just generated."""
        last = torch.tensor([ids[-1:] for ids in completion_ids], device=self._next.device)
        table = torch.cat([*self._columns, self._next.gather(-1, last)], dim=1).tolist()
        return [row[: len(ids)] for row, ids in zip(table, completion_ids, strict=True)]


@contextmanager
def record_log_probs(policy: PreTrainedModel | PeftModel, temperature: float) -> Iterator[LogProbRecorder]:
    """Record one call of `policy.generate`. It costs a softmax a token, and no further pass over the completions.

    The tokens were sampled with these probabilities, up to suppressed tokens, truncation (`top_k`, `top_p`) and
    penalties, which TRL's log-probabilities leave out as well.
    """
    model = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    recorder = LogProbRecorder(temperature)
    hook = model.register_forward_hook(recorder.record, with_kwargs=True)
    try:
        yield recorder
    finally:
        hook.remove()
