"""The policy that TRL's `ModelConfig` names: a model, or an adapter that training goes on with."""

import warnings
from typing import Any

from accelerate.logging import get_logger
from peft import PeftConfig, PeftModel
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.utils import is_bitsandbytes_available
from transformers.utils.peft_utils import find_adapter_config_file
from trl import ModelConfig, get_peft_config, get_quantization_config
from trl.trainer.utils import create_model_from_path

from brushup.config import PromptEnhancerConfig


logger = get_logger(__name__)


def load_policy(model: ModelConfig, args: PromptEnhancerConfig) -> dict[str, Any]:
    """The arguments of `PromptEnhancerTrainer` that make its policy; fills `args.model_init_kwargs`.

    A model is left to TRL to load: fully fine-tuned, or with a new adapter if `use_peft` (LoRA; QLoRA with
    `load_in_4bit`). If `model_name_or_path` is an adapter, its base model is loaded and training goes on with that
    very adapter; with `beta` > 0 the KL is to where the adapter started.

    Returns:
        `model` (a name, or a trainable `PeftModel`), `quantization_config` and `peft_config`.
    """
    name = model.model_name_or_path
    quantization_config = _quantization_config(model)
    args.model_init_kwargs = {
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
        policy = _load_trainable_adapter(name, model.model_revision, quantization_config, args)
        args.model_init_kwargs = None  # used up
        return {"model": policy, "quantization_config": None, "peft_config": None}

    if quantization_config and not model.use_peft:
        raise ValueError(
            "quantized weights cannot be trained: with load_in_4bit or load_in_8bit set use_peft: true (QLoRA); for "
            "full fine-tuning leave both out"
        )
    peft_config = get_peft_config(model)
    if peft_config:
        peft_config.revision = model.model_revision  # saved with the adapter: which base it belongs to
    return {"model": name, "quantization_config": quantization_config, "peft_config": peft_config}


def check_head(policy: PreTrainedModel | PeftModel, is_fsdp2: bool) -> None:
    """Raises a ValueError if FSDP2 would train the policy's head on each GPU's own rewrites.

    TRL 1.16's fused log-probabilities gather a sharded head without saying that its gradient is a sum over the GPUs.
    A frozen head, and one that is the embeddings (as Qwen2-VL 2B has it), are right.
    """
    if not is_fsdp2:
        return
    head, embeddings = policy.get_output_embeddings(), policy.get_input_embeddings()
    if head.weight.requires_grad and head.weight is not embeddings.weight:
        raise ValueError(
            "FSDP2 with TRL 1.16 gives the head of this policy (apart from its embeddings) a wrong gradient: on each "
            "GPU that of its own rewrites. Train a LoRA adapter (use_peft: true), or take deepspeed_zero3.yaml"
        )


def is_adapter(name: str, revision: str | None = None) -> bool:
    """Whether `name` is an adapter, and not a whole model.

    Raises:
        OSError: it is neither a folder here nor a model on the Hub.
    """
    try:
        return find_adapter_config_file(name, revision=revision) is not None
    except OSError as error:
        raise OSError(f"{name!r} is no folder here with a model, and no model on the Hub: {error}") from error


def _quantization_config(model: ModelConfig) -> BitsAndBytesConfig | None:
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

        # Else, on a CPU with AVX512-BF16, the first inference repacks the weights, and they pass no gradient on.
        bitsandbytes.nn.modules.has_avx512bf16 = lambda: False
    return get_quantization_config(model)


def load_adapter(
    name: str,
    revision: str | None = None,
    is_trainable: bool = False,
    autocast_adapter_dtype: bool = True,
    **settings: Any,
) -> PeftModel:
    """The adapter `name` (Hub id or folder) on the base model that it names.

    Args:
        revision: of the adapter.
        is_trainable, autocast_adapter_dtype: as for `PeftModel.from_pretrained`.
        **settings: how to load the base model: `dtype`, `device_map`, ...

    Raises:
        OSError: the base model is not found.
        ValueError: the adapter does not fit it.
    """
    config = PeftConfig.from_pretrained(name, revision=revision)
    base = config.base_model_name_or_path
    try:
        base_model = create_model_from_path(base, revision=config.revision or "main", **settings)
    except OSError as error:
        raise OSError(
            f"{name}/adapter_config.json: its base model {base!r} cannot be loaded; correct base_model_name_or_path "
            f"there (a relative path starts at the folder that you launch from). {error}"
        ) from error
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Found missing adapter keys")
        try:
            return PeftModel.from_pretrained(
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


def _load_trainable_adapter(
    name: str, revision: str, quantization_config: BitsAndBytesConfig | None, args: PromptEnhancerConfig
) -> PeftModel:
    """The adapter `name` on its base model, ready to train on: TRL would take a frozen one, and train nothing."""
    settings = {
        "trust_remote_code": args.trust_remote_code,
        **args.model_init_kwargs,
        "quantization_config": quantization_config,
    }
    settings.pop("revision")  # the adapter's; the base has its own
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):  # as TRL does for a model by name
        settings["device_map"] = None
    # As TRL does for a new adapter: ZeRO-3 gathers tensors of one dtype only.
    zero3 = args.deepspeed_plugin is not None and args.deepspeed_plugin.zero_stage == 3
    autocast = bool(quantization_config) or not zero3
    return load_adapter(name, revision, is_trainable=True, autocast_adapter_dtype=autocast, **settings)
