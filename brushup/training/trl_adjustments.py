"""Adjustments to a `GRPOTrainer` that TRL has no setting for."""

from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedModel
from trl import GRPOTrainer
from trl.models import unwrap_model_for_generation

from brushup.config import PromptEnhancerConfig
from brushup.policy.compiled import compiled_decoding


def check_arguments(args: PromptEnhancerConfig, arguments: dict[str, Any]) -> None:
    """Check the arguments that the trainer hands on to `GRPOTrainer`.

    Raises:
        ValueError: one of TRL's ways to make completions that are no prompts to render; rows that `load_prompts` did
            not make; or `max_staleness` with a way of generating that tells no log-probabilities.
    """
    for name in ("tools", "rollout_func", "environment_factory"):
        if arguments.get(name):
            raise ValueError(f"{name}: each completion is rendered as one prompt, so this has no meaning here")
    rows = arguments.get("train_dataset")
    if not isinstance(rows, Dataset) or not {"prompt", "user_prompt"} <= {*rows.column_names}:
        raise ValueError("train_dataset: it must be what load_prompts returns (with `user_prompt` and `prompt`)")
    if args.use_vllm and ("image" in rows.column_names or args.turns > 1):
        raise ValueError(
            "use_vllm: TRL 1.16 hands vLLM a request with its image's tokens filled in, and vLLM fills them in once "
            "more, so both read different tokens: leave the column `image` and `turns: 2` out, or use_vllm"
        )
    if args.max_staleness and args.use_transformers_continuous_batching:
        reason = "use_transformers_continuous_batching does not tell: leave that out, or set use_vllm: true"
    elif args.max_staleness and (args.generation_kwargs or {}).get("num_beams", 1) > 1:
        reason = "beam search (generation_kwargs: num_beams) does not have: leave that out"
    else:
        return
    raise ValueError(
        f"max_staleness: {args.max_staleness} needs the log-probabilities of sampled tokens, which {reason}"
    )


@contextmanager
def whole_policy(trainer: GRPOTrainer) -> Iterator[PreTrainedModel | PeftModel]:
    """Yield the policy as `generate` needs it, with weights gathered that ZeRO-3 or FSDP2 have sharded."""
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=trainer.args.ds3_gather_for_generation,
            gradient_checkpointing_kwargs=trainer.args.gradient_checkpointing_kwargs,
        ) as policy,
        trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
    ):
        yield policy


@contextmanager
def metrics_kept(trainer: GRPOTrainer) -> Iterator[dict[str, list[float]]]:
    """Keep what TRL logs inside this context for later: a batch may be written a step before it is trained on."""
    mode, tokens = "train" if trainer.model.training else "eval", trainer.state.num_input_tokens_seen
    logged, kept = trainer._metrics[mode], defaultdict(list)
    trainer._metrics[mode] = kept
    try:
        yield kept
    finally:
        trainer._metrics[mode] = logged
        kept["num_tokens"] = [trainer.state.num_input_tokens_seen - tokens]
        trainer.state.num_input_tokens_seen = tokens


def log_kept_metrics(trainer: GRPOTrainer, kept: dict[str, list[float]]) -> None:
    """Log now what `metrics_kept` kept."""
    logged = trainer._metrics["train" if trainer.model.training else "eval"]
    for name, values in kept.items():
        logged[name] += values
    trainer.state.num_input_tokens_seen += kept["num_tokens"][0]
    logged["num_tokens"] = [trainer.state.num_input_tokens_seen]


def log_whole_steps(trainer: GRPOTrainer) -> None:
    """Make room in TRL's table of completions for all rows of an optimizer step, and not of one generation batch."""
    args = trainer.args
    rows = args.generation_batch_size * max(1, args.gradient_accumulation_steps // args.steps_per_generation)
    new_log = partial(deque, maxlen=rows)
    for name, log in trainer._logs.items():
        trainer._logs[name] = new_log() if isinstance(log, deque) else defaultdict(new_log)


def compile_decoding(trainer: GRPOTrainer, policy: PreTrainedModel | PeftModel) -> None:
    """Let the policy compile its decoding step where it can, which TRL's `generation_config` forbids.

    A user's `cache_implementation` other than static stays.
    """
    writes_itself = not trainer.use_vllm and not trainer.use_transformers_continuous_batching
    if writes_itself and trainer.args.cache_implementation in (None, "static"):
        trainer.generation_config.update(**compiled_decoding(policy))


def renew_embedding_hooks(policy: PreTrainedModel | PeftModel) -> None:
    """Let gradient checkpointing replace its hooks on the embeddings.

    TRL turns it off to generate, and on again, which adds a hook to those that are there: without end, and each would
    have the decoding step compiled anew.
    """
    model = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    enable = model.enable_input_require_grads

    def renew():
        model.disable_input_require_grads()
        enable()

    model.enable_input_require_grads = renew


def suppress_tokens(trainer: GRPOTrainer, token_ids: list[int]) -> None:
    """Keep the policy from writing these tokens."""
    if trainer.use_vllm:  # a field of vLLM's SamplingParams, and of the requests to its server
        kwargs = trainer.vllm_generation.generation_kwargs
        bias = {**(kwargs.get("logit_bias") or {}), **dict.fromkeys(token_ids, -100.0)}
        trainer.vllm_generation.generation_kwargs = {**kwargs, "logit_bias": bias}
    else:
        suppressed = [*{*token_ids, *(trainer.generation_config.suppress_tokens or ())}] or None
        trainer.generation_config.suppress_tokens = trainer.generation_kwargs["suppress_tokens"] = suppressed
