"""Log-probabilities of sampled tokens, recorded during `generate`."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import PeftModel
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel


class LogProbRecorder(LogitsProcessor):
    """Records the log-probabilities of the tokens that `generate` samples at a temperature; changes no logits."""

    def __init__(self, temperature: float):
        self.temperature = temperature
        self._columns: list[torch.Tensor] = []
        self._next: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Record the logits of the next tokens.

        Args:
            input_ids: (batch, tokens so far), which end with those sampled from the logits of the last call.
            scores: (batch, vocabulary), in float32.
        """
        if self._next is not None:
            self._columns.append(self._next.gather(-1, input_ids[:, -1:]))
        self._next = torch.log_softmax(scores / self.temperature, dim=-1)
        return scores

    def for_tokens(self, completion_ids: list[list[int]]) -> list[list[float]]:
        """Return a log-probability for each token of the completions, which must be those just generated."""
        last = torch.tensor([ids[-1:] for ids in completion_ids], device=self._next.device)
        table = torch.cat([*self._columns, self._next.gather(-1, last)], dim=1).tolist()
        return [row[: len(ids)] for row, ids in zip(table, completion_ids, strict=True)]


@contextmanager
def record_log_probs(policy: PreTrainedModel | PeftModel, temperature: float) -> Iterator[LogProbRecorder]:
    """Record one call of `policy.generate`. It costs a softmax a token, and no further pass over the completions.

    The tokens were sampled with these probabilities, up to suppressed tokens, truncation (`top_k`, `top_p`) and
    penalties, which TRL's log-probabilities leave out as well. A forward hook would not do: a compiled pass skips it.
    """
    model = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    recorder = LogProbRecorder(temperature)
    processors = model._get_logits_processor
    model._get_logits_processor = lambda **arguments: LogitsProcessorList([recorder, *processors(**arguments)])
    try:
        yield recorder
    finally:
        del model._get_logits_processor
