"""Adjustments to a `GRPOTrainer` that TRL has no setting for."""

from collections import defaultdict, deque
from functools import partial

from trl import GRPOTrainer


def log_whole_steps(trainer: GRPOTrainer) -> None:
    """Make room in TRL's table of completions for all rows of an optimizer step, and not of one generation batch."""
    args = trainer.args
    rows = args.generation_batch_size * max(1, args.gradient_accumulation_steps // args.steps_per_generation)
    new_log = partial(deque, maxlen=rows)
    for name, log in trainer._logs.items():
        trainer._logs[name] = new_log() if isinstance(log, deque) else defaultdict(new_log)


def suppress_tokens(trainer: GRPOTrainer, token_ids: list[int]) -> None:
    """Keep the policy from writing these tokens."""
    if trainer.use_vllm:  # a field of vLLM's SamplingParams, and of the requests to its server
        kwargs = trainer.vllm_generation.generation_kwargs
        bias = {**(kwargs.get("logit_bias") or {}), **dict.fromkeys(token_ids, -100.0)}
        trainer.vllm_generation.generation_kwargs = {**kwargs, "logit_bias": bias}
    else:
        suppressed = [*{*token_ids, *(trainer.generation_config.suppress_tokens or ())}] or None
        trainer.generation_config.suppress_tokens = trainer.generation_kwargs["suppress_tokens"] = suppressed
