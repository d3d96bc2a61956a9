"""Loading of the policy that TRL's `ModelConfig` names: a model, or an adapter that training goes on with."""

import json
import logging
import re
import warnings
from contextlib import suppress
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import AutoProcessor, BitsAndBytesConfig, GenerationConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available
from transformers.utils.peft_utils import find_adapter_config_file
from trl import ModelConfig, get_peft_config, get_quantization_config
from trl.trainer.utils import create_model_from_path

from brushup.config import PromptEnhancerConfig
from brushup.policy.chat import Processor, prepare_processor


logger = logging.getLogger(__name__)


def load_policy(model: ModelConfig, args: PromptEnhancerConfig) -> dict[str, Any]:
    """Return the arguments of `PromptEnhancerTrainer` that make its policy, and `model_init_kwargs` for its `args`.

    TRL loads a model: fully fine-tuned, or with a new adapter if `use_peft` (LoRA; QLoRA with `load_in_4bit`). If
    `model_name_or_path` is an adapter, its base model is loaded here and training goes on with that adapter; with
    `beta` > 0 the KL divergence is measured from the adapter as it was at the start.

    Returns:
        `model` (a name, or a trainable `PeftModel`), `quantization_config`, `peft_config`, and `model_init_kwargs`,
        which replaces that field of `args`; it is None for a loaded adapter.

    Raises:
        ImportError: quantization without bitsandbytes.
        OSError: there is no such model.
        ValueError: quantized weights without an adapter to train, or an adapter that does not fit its base model.
    """
    name = model.model_name_or_path
    quantization_config = _quantization_config(model)
    init_kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        **(args.model_init_kwargs or {}),
    }
    try:
        adapter = is_adapter(name, model.model_revision)
    except OSError as error:
        raise OSError(f"model_name_or_path: {error}") from error
    if adapter:
        if model.use_peft:
            logger.warning(f"{name} is an adapter: training goes on with it; use_peft and lora_* do not apply")
        policy = _load_trainable_adapter(name, init_kwargs | {"quantization_config": quantization_config}, args)
        return {"model": policy, "quantization_config": None, "peft_config": None, "model_init_kwargs": None}

    if quantization_config and not model.use_peft:
        raise ValueError(
            "quantized weights cannot be trained: with load_in_4bit or load_in_8bit set use_peft: true (QLoRA); for "
            "full fine-tuning leave both out"
        )
    peft_config = get_peft_config(model)
    if peft_config:
        names = peft_config.target_modules
        if isinstance(names, str) and names != "all-linear" and re.fullmatch(r"[\w.]+", names):
            peft_config.target_modules = {names}  # TRL unpacks a list of one, and PEFT takes a text for a pattern
        peft_config.revision = model.model_revision  # saved with the adapter, so that it finds its base
    return {
        "model": name,
        "quantization_config": quantization_config,
        "peft_config": peft_config,
        "model_init_kwargs": init_kwargs,
    }


def check_policy(policy: PreTrainedModel | PeftModel, args: PromptEnhancerConfig, is_fsdp2: bool) -> None:
    """Raise a ValueError if FSDP2 would give the policy's head a wrong gradient, or it can't train on older rewrites.

    TRL 1.16's fused log-probabilities gather a sharded head without telling FSDP2 that its gradient is a sum over the
    GPUs, so each GPU would train it on its own rewrites. A frozen head, and one tied to the embeddings (as in
    Qwen2-VL 2B), are not affected.
    """
    configs = policy.peft_config.values() if isinstance(policy, PeftModel) else ()
    if args.max_staleness and any(config.is_prompt_learning for config in configs):
        raise ValueError(
            f"max_staleness: {args.max_staleness} does not work with prompt tuning, whose log-probabilities are not "
            "known while it writes; train a LoRA adapter, or leave it out"
        )
    if not is_fsdp2:
        return
    head, embeddings = policy.get_output_embeddings(), policy.get_input_embeddings()
    if head.weight.requires_grad and head.weight is not embeddings.weight:
        raise ValueError(
            "FSDP2 with TRL 1.16 gives the head of this policy (apart from its embeddings) a wrong gradient: on each "
            "GPU that of its rewrites alone. Train a LoRA adapter (use_peft: true), or take deepspeed_zero3.yaml"
        )


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Return whether `name` is an adapter, and not a whole model.

    Raises:
        OSError: it is neither a folder here nor a model on the Hub.
    """
    try:
        return find_adapter_config_file(name, revision=revision) is not None
    except OSError as error:
        raise OSError(f"{name!r} is no folder here with a model, and no model on the Hub: {error}") from error


def _quantization_config(model: ModelConfig) -> BitsAndBytesConfig | None:
    """Return the settings of `load_in_4bit` or `load_in_8bit`; None without either."""
    if (model.load_in_4bit or model.load_in_8bit) and not is_bitsandbytes_available():
        raise ImportError(
            'load_in_4bit and load_in_8bit need a recent bitsandbytes: pip install "brushup[quantization]"'
        )
    if model.load_in_4bit:
        if model.dtype in (None, "auto"):
            raise ValueError(
                f"load_in_4bit computes in `dtype`, which is {model.dtype}: set dtype: bfloat16 (or float16, float32)"
            )
        import bitsandbytes

        # On a CPU with AVX512-BF16 the first inference would repack the weights, which then pass no gradient on.
        bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
    return get_quantization_config(model)


def load_adapter(
    name: str,
    revision: str | None = None,
    is_trainable: bool = False,
    autocast_adapter_dtype: bool = True,
    **settings: Any,
) -> PeftModel:
    """Load the adapter `name` (Hub id or folder) on the base model that it names.

    Args:
        revision: of the adapter.
        is_trainable, autocast_adapter_dtype: as for `PeftModel.from_pretrained`.
        **settings: how to load the base model: `dtype`, `device_map`, ...

    Raises:
        OSError: the base model is not found.
        ValueError: the adapter does not fit it.
    """
    config = _adapter_config(name, revision)
    base = config.base_model_name_or_path
    try:
        base_model = load_model(base, revision=config.revision or "main", **settings)
    except OSError as error:
        raise OSError(
            f"{name}/adapter_config.json: its base model {base!r} cannot be loaded; correct base_model_name_or_path "
            f"there (a relative path starts at the folder that you launch from). {error}"
        ) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            model = PeftModel.from_pretrained(
                base_model,
                name,
                is_trainable=is_trainable,
                revision=revision,
                autocast_adapter_dtype=autocast_adapter_dtype,
            )
        except UserWarning as missing:
            raise ValueError(
                f"{name} does not fit its base model {base!r}: part of it would start from scratch. {missing}"
            ) from missing
        except SafetensorError as error:
            raise ValueError(
                f"{name}/adapter_model.safetensors: cannot be read, it may be cut off ({error})"
            ) from error
        except RuntimeError as error:  # PEFT lists every weight that has another shape
            raise ValueError(f"{name} does not fit its base model {base!r}: {_first_lines(error)}") from error
    with suppress(OSError):  # an adapter may come without
        model.generation_config = GenerationConfig.from_pretrained(name, revision=revision)
    return model


def load_model(name: str, **settings: Any) -> PreTrainedModel:
    """Load a whole model by Hub id or folder; raise an OSError that names it if that fails."""
    try:
        return create_model_from_path(name, **settings)
    except SafetensorError as error:
        raise OSError(f"{name}: its weights (*.safetensors) cannot be read, they may be cut off ({error})") from error
    except (OSError, ValueError) as error:  # ValueError: a folder that holds no model
        raise OSError(f"{name!r} is no folder here with a model, and no model on the Hub: {error}") from error


def load_processor(name: str, revision: str | None = None, trust_remote_code: bool = False) -> Processor:
    """Load the processor (image-text) or tokenizer (text) of a model, or of an adapter, which may be its base's.

    Raises:
        OSError: there is none.
        ValueError: as `prepare_processor`.
    """
    settings = {"trust_remote_code": trust_remote_code, "padding_side": "left", "truncation_side": "left"}
    base = _adapter_config(name, revision).base_model_name_or_path if is_adapter(name, revision) else None
    try:
        processor = AutoProcessor.from_pretrained(name, revision=revision, **settings)
    except (OSError, ValueError, KeyError) as error:
        if not base:
            raise OSError(
                f"{name!r} is no folder here with a model, and no model on the Hub, or it lacks a tokenizer: "
                f"{_first_lines(error)}"
            ) from error
        processor = AutoProcessor.from_pretrained(base, **settings)
    prepare_processor(processor)
    return processor


def _adapter_config(name: str, revision: str | None) -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(name, revision=revision)
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{name}/adapter_config.json: this is no adapter's configuration ({error})") from error


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _load_trainable_adapter(name: str, init_kwargs: dict[str, Any], args: PromptEnhancerConfig) -> PeftModel:
    """Load the adapter `name` on its base model, ready to train: TRL would take a frozen one, and train nothing.

    Args:
        init_kwargs: how to load the base model; `revision` is the adapter's, since the adapter names that of its base.
    """
    settings = {"trust_remote_code": args.trust_remote_code, **init_kwargs}
    revision = settings.pop("revision")
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):  # as TRL does for a model by name
        settings["device_map"] = None
    # As TRL does for a new adapter: ZeRO-3 gathers tensors of one dtype only.
    zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    autocast = bool(settings["quantization_config"]) or not zero3
    return load_adapter(name, revision, is_trainable=True, autocast_adapter_dtype=autocast, **settings)
