"""Writing with a compiled decoding step, for which the CPU no longer launches each kernel of each token."""

import os
import shutil
import sys
from typing import Any

from peft import PeftModel
from torch.distributed.tensor import DTensor
from transformers import CompileConfig, PreTrainedModel

from brushup.console import say


DEVICES = ("cuda",)
CACHE_LENGTHS = 128  # tokens: caches have a multiple of it, because each length is compiled by itself
COMPILING = CompileConfig(dynamic=False)  # a CUDA graph has fixed shapes in any case
COMPILING._compile_all_devices = True  # the device is checked here


def compiled_decoding(policy: PreTrainedModel | PeftModel) -> dict[str, Any]:
    """Return the arguments with which the policy's `generate` compiles its decoding step; none where it can't.

    It can on CUDA, where the weights are whole: not with ZeRO-3 and FSDP2, which gather a layer's weights at another
    address each time, where a CUDA graph would not find them; and not with bitsandbytes' weights. An adapter stays
    apart: merging it into bfloat16 weights and taking it out again would change them a little at each step.
    """
    model = policy.get_base_model() if isinstance(policy, PeftModel) else policy
    if not isinstance(model, PreTrainedModel) or model.device.type not in DEVICES or not model._can_compile_fullgraph:
        return {}
    if not os.environ.get("CC") and not shutil.which("gcc") and not shutil.which("clang"):
        return {}  # Triton would not find the C compiler that it needs
    quantizer = getattr(model, "hf_quantizer", None)
    is_sharded = any(hasattr(weight, "ds_id") or isinstance(weight, DTensor) for weight in model.parameters())
    if is_sharded or (quantizer and not quantizer.is_compileable):
        return {}
    _keep_caches(model)
    return {"cache_implementation": "static", "compile_config": COMPILING, "disable_compile": False}


def _keep_caches(model: PreTrainedModel) -> None:
    """Let all calls of `generate` with one batch size write into one static cache.

    A CUDA graph holds the cache's address: each new cache would be recorded anew, and PyTorch gives up after 128 times
    (`torch._inductor.config.triton.cudagraph_unexpected_rerecord_limit`).
    """
    if "_prepare_static_cache" in vars(model):
        return
    prepare, caches, lengths = model._prepare_static_cache, {}, {}

    def prepare_kept(batch_size: int, max_cache_len: int, **others: Any):
        length = -(-max_cache_len // CACHE_LENGTHS) * CACHE_LENGTHS
        if lengths.get(batch_size, 0) < length:
            # Not on standard output, which may be a program's rewrites.
            say(f"compiling the writing of {batch_size} rewrites at once: up to a minute, once", sys.stderr)
            caches[batch_size] = prepare(batch_size=batch_size, max_cache_len=length, **others)
            lengths[batch_size] = length
        caches[batch_size].reset()
        return caches[batch_size]

    model._prepare_static_cache = prepare_kept
