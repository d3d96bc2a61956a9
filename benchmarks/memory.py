"""What does training take of a GPU's memory, and what fits on 24, 48, 80 and 141 GB?

    python benchmarks/memory.py --output memory.json
    python benchmarks/memory.py --check   # against a real training step, on the CPU

It needs no GPU and no weights. Weights, gradients and optimizer state are calculated: parameters (counted in models of
the published sizes) times bytes. The memory of forward, backward and rendering is counted: the real step of the real
model runs on fake tensors, which have a size and no content, and the bytes alive at once are added up. All figures are
in GiB, as in `nvidia-smi`; a "24 GB" GPU has 24 of them.

docs/memory.md says what is counted and what is not. The limit is a run on a GPU, which says its peak after two steps.
"""

import argparse
import functools
import itertools
import json
import os
import threading
import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from gpu_models import QWEN2_VL
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
)
from trl.trainer.utils import add_fused_lm_head

from brushup.console import quiet_libraries
from brushup.policy.compiled import CACHE_LENGTHS


GIB = 2**30
GPUS = (24, 48, 80, 141)
USABLE = 0.9  # of a GPU: the rest is lost to fragments, and to what nobody counted
FIXED = 1 * GIB  # CUDA's context and its libraries' workspaces: an assumption

# The policy of --check: all of the vocabulary, and otherwise small
SMALL = QWEN2_VL["2B"] | {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 4}
SMALL["num_hidden_layers"] = 8

# The recipes' adapter
LORA = LoraConfig(r=16, target_modules="q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())
BATCHES = (1, 8, 32)  # per_device_train_batch_size
GENERATORS = ("none", "SD3 without T5", "SD3")
SCORER = 2.4e9  # bytes of xlm-roberta-large-ViT-H-14 in bfloat16: 1.19 billion parameters
PIXELS = 512
RENDERING = [("none", 8, False)]  # generator, images at once, compiled
RENDERING += [(name, *way) for name in ("SD3 without T5", "SD3") for way in ((8, False), (32, False), (32, True))]

# (method, ZeRO stage or FSDP2, GPUs). Full fine-tuning in bfloat16 needs weights in float32 besides: DeepSpeed keeps a
# copy of them, and under FSDP2 the weights themselves are.
METHODS = [("QLoRA", "-", 1), ("LoRA", "-", 1), ("LoRA", "3", 8), ("LoRA", "FSDP2", 8)]
METHODS += [("full", "2", 8), ("full", "3", 8), ("full", "3, offload", 8), ("full", "FSDP2", 8)]


@dataclass(frozen=True)
class Setting:
    """A run's settings that matter for memory.

    Args:
        policy: a key of `QWEN2_VL`.
        method, stage, gpus: of `METHODS`.
        generator: `none` (a service renders), `SD3 without T5` or `SD3`; with its scorer, on the same GPU.
        batch: `per_device_train_batch_size`.
        render_batch: images rendered at once.
        compiled: `compile_generator`.
        written: batches of completions that are written at once.
        prompt, completion: tokens; the instruction is some 100 of a prompt's.
        compiled_policy: whether writing is compiled where it can be; then its key-value cache is kept.
        checkpointing: `gradient_checkpointing`.
        reference: whether there is a reference model (`beta` > 0).
    """

    policy: str
    method: str = "LoRA"
    stage: str = "-"
    gpus: int = 1
    generator: str = "none"
    batch: int = 8
    render_batch: int = 8
    compiled: bool = False
    written: int = 4
    prompt: int = 128
    completion: int = 160
    compiled_policy: bool = True
    checkpointing: bool = True
    reference: bool = True


# The settings and the GiB that were allocated on an H100 (ca67f80, random weights): runs of the recipes, then steps
# with rewards that cost nothing.
STEP = Setting("2B", batch=64, written=1, prompt=89, completion=64, compiled_policy=False, reference=False)
RECIPE_7B = Setting("7B", generator="SD3", render_batch=16, written=1, compiled_policy=False)
MEASURED = {
    "recipe for 2B on one GPU": (Setting("2B", "QLoRA", generator="SD3 without T5", completion=128), 13.1),
    "recipe for 7B on one GPU": (RECIPE_7B, 40.4),
    "micro-batches of 8": (replace(STEP, batch=8, written=8), 5.2),
    "of 16": (replace(STEP, batch=16, written=4), 5.2),
    "of 64": (STEP, 6.9),
    "of 8, no checkpointing": (replace(STEP, batch=8, written=8, checkpointing=False), 8.3),
    "of 64, no checkpointing": (replace(STEP, checkpointing=False), 35.1),
    "of 64, no checkpointing, full": (replace(STEP, method="full", checkpointing=False), 40.0),
}
# The same for Stable Diffusion 3: with T5 or without, images at once, compiled or not, GiB
RENDERED = [(True, 4, False, 16.9), (True, 8, False, 19.3), (True, 16, False, 24.1), (True, 32, False, 33.8)]
RENDERED += [(True, 32, True, 25.6), (False, 32, False, 25.1)]


class LiveBytes(TorchDispatchMode):
    """A counter of the bytes of all tensors that are created inside it: alive now (`live`), and at most (`peak`)."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.copies_for_cudnn = True
        self._seen = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        tree_map_only(torch.Tensor, self._track, output)
        if func is torch.ops.aten.convolution.default and self.copies_for_cudnn:
            # cuDNN works on channels-last copies of both
            self.peak = max(self.peak, self.live + args[0].nbytes + output.nbytes)
        return output

    def _track(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()  # views share it
        if storage not in self._seen:
            size = storage.nbytes()
            self._seen[storage] = size
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.live -= size


def policy_on_meta(
    size: dict, lora: bool = False, vision_depth: int = 32, checkpointing: bool = True
) -> torch.nn.Module:
    """Return a Qwen2-VL policy in bfloat16 without weights, set up for training as by TRL.

    Args:
        size: fields of its text model's config.
        lora: with an adapter, in float32, all else frozen.
        vision_depth: layers of the vision tower, which does nothing as long as prompts have no images.
        checkpointing: whether a layer's activations are computed again in the backward.
    """
    text = {"num_hidden_layers": 28} | size
    vision = {
        "depth": vision_depth,
        "embed_dim": 1280,
        "num_heads": 16,
        "mlp_ratio": 4,
        "hidden_size": size["hidden_size"],
    }
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=size["tie_word_embeddings"])
    with torch.device("meta"):
        policy = Qwen2VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
        if checkpointing:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        add_fused_lm_head(policy, outputs=("log_probs", "entropy"))
        if lora:
            policy = get_peft_model(policy, LORA)
        policy.enable_input_require_grads()
    return policy.train()


def materialize(model: torch.nn.Module) -> None:
    """Give a model on the meta device real tensors; inside `FakeTensorMode`, fake ones."""
    new_tensors = {}  # by the id of the old tensor, which is kept too, so that no other tensor gets its id
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, old in tensors.items():
                if old is not None and id(old) not in new_tensors:  # tied weights stay tied
                    new = torch.empty(old.shape, dtype=old.dtype)
                    new.fill_(0.01)
                    if isinstance(old, torch.nn.Parameter):
                        new = torch.nn.Parameter(new, requires_grad=old.requires_grad)
                    new_tensors[id(old)] = old, new
                if old is not None:
                    tensors[name] = new_tensors[id(old)][1]


@contextmanager
def counting(as_on_a_gpu: bool = True):
    """Make tensors fake inside this context, and count their bytes.

    `as_on_a_gpu`: TRL's log-probabilities are made in place, as by its Triton kernels; on a CPU it makes copies.
    """
    with ExitStack() as stack:
        if as_on_a_gpu:
            for name in ("_forward_tile", "_backward_tile", "_addmm_fp32"):
                stack.enter_context(mock.patch(f"trl.kernels.chunked_logprob.{name}", lambda *a, **k: None))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(LiveBytes())


def training_step(policy: torch.nn.Module, batch: int, length: int, keep_gradients: bool = False) -> None:
    """Run forward and backward of `batch` rows of `length` tokens, as GRPO does, in bfloat16."""
    if not keep_gradients:  # they are counted apart, since ZeRO shards them
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda tensor: setattr(tensor, "grad", None))
    ids = torch.zeros(batch, length, dtype=torch.long)
    positions = torch.arange(length).expand(3, batch, length)
    with torch.autocast("cpu", torch.bfloat16):
        output = policy(
            input_ids=ids, attention_mask=torch.ones_like(ids), position_ids=positions, labels=ids, fused_lm_head=True
        )
    output.log_probs.sum().backward()


@functools.cache
def activation_bytes(policy: str, lora: bool, batch: int, length: int = 288, checkpointing: bool = True) -> int:
    """Return the peak of forward and backward of `batch` rows of `length` tokens, beyond weights and gradients."""
    model = policy_on_meta(QWEN2_VL[policy], lora=lora, checkpointing=checkpointing)
    with counting() as bytes_:
        materialize(model)
        before = bytes_.peak = bytes_.live
        training_step(model, batch, length)
    return bytes_.peak - before


@functools.cache
def generator_bytes(with_t5: bool, batch: int, compiled: bool = False) -> tuple[int, int]:
    """Return the bytes of Stable Diffusion 3 medium in bfloat16: of its weights, and of rendering `batch` images.

    Compiled, its images are channels-last from the start.
    """
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            num_layers=24,
            num_attention_heads=24,
            attention_head_dim=64,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=192,
        )
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
        large = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
        big = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "projection_dim": 1280}
        texts = [
            CLIPTextModelWithProjection(CLIPTextConfig(**large, num_hidden_layers=12)),
            CLIPTextModelWithProjection(CLIPTextConfig(**big, num_hidden_layers=32)),
        ]
        if with_t5:
            t5 = {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"}
            texts.append(T5EncoderModel(T5Config(**t5, d_kv=64, vocab_size=32128)))
    weights = 2 * sum(parameters(model) for model in (transformer, vae, *texts))
    images, side = 2 * batch, PIXELS // 8  # with and without the prompt, for guidance
    with counting() as bytes_, torch.no_grad():
        bytes_.copies_for_cudnn = not compiled
        for model in (transformer, vae):
            model.to(torch.bfloat16)
            materialize(model)
        before = bytes_.peak = bytes_.live
        latents = torch.empty(images, 16, side, side, dtype=torch.bfloat16)
        text = torch.empty(images, 77 + 256, 4096, dtype=torch.bfloat16)
        pooled = torch.empty(images, 2048, dtype=torch.bfloat16)
        transformer(latents, text, pooled, timestep=torch.ones(images))
        vae.decode(latents[:batch])
    return weights, bytes_.peak - before


def parameters(model: torch.nn.Module, trainable_only: bool = False) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


@functools.cache
def sizes(policy: str) -> tuple[int, int, int]:
    """Count a policy's parameters: all, those in 4 bits with QLoRA (linear layers but the head), and LoRA's."""
    base = policy_on_meta(QWEN2_VL[policy])
    linear = [m for name, m in base.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]
    in_4_bits = sum(module.weight.numel() for module in linear)
    of_lora = parameters(policy_on_meta(QWEN2_VL[policy], lora=True), trainable_only=True)
    return parameters(base), in_4_bits, of_lora


@functools.cache
def fsdp2_units(policy: str) -> tuple[int, int]:
    """Count the parameters of a decoder layer, and of all modules outside of layers (embeddings, head, merger)."""
    named = list(policy_on_meta(QWEN2_VL[policy]).named_parameters())
    layer = sum(p.numel() for name, p in named if ".layers.0." in name)
    return layer, sum(p.numel() for name, p in named if ".layers." not in name and ".blocks." not in name)


def state_bytes(method: str, stage: str, gpus: int) -> float:
    """Return the bytes on each GPU of the training state of one trained weight: gradient, Adam states, copies.

    QLoRA's adapter is in bfloat16, LoRA's in float32 (under ZeRO-3 in bfloat16, with a copy in float32), each with two
    Adam states. With full fine-tuning gradients are in bfloat16, weights and states in float32, over all GPUs. FSDP2
    has all trained weights in float32 (accelerate's `fsdp2_prepare_model`), over all GPUs.
    """
    if method == "QLoRA":
        return 2 + 2 + 4
    if stage == "FSDP2":
        return (4 + 4 + 8) / gpus
    if (method, stage) == ("full", "-"):  # all in bfloat16; gradients come as activations go
        return 4
    if method == "LoRA":
        return 2 + (2 + 12) / gpus if stage == "3" else 4 + 4 + 8
    return (2 + 12) / gpus


def communication_bytes(policy: str, method: str, stage: str) -> int:
    """Return the bytes of DeepSpeed's buckets, and of the layers that ZeRO-3 or FSDP2 has gathered."""
    count, _, of_lora = sizes(policy)
    if stage == "-":
        return 0
    if stage == "FSDP2":
        layer, outside = fsdp2_units(policy)
        # Embeddings and head stay gathered from a forward to the end of the backward. A layer is gathered while it
        # computes, and so is the next one; with full fine-tuning its gradients leave from another buffer.
        return 2 * (outside + (3 if method == "full" else 2) * layer)
    buckets = 2 * 2 * min(count if method == "full" else of_lora, 500_000_000)
    return buckets + (2 * min(count, 1_000_000_000) if stage.startswith("3") else 0)


def peak(setting: Setting) -> dict[str, float]:
    """Return the peak on each GPU, in bytes, and its parts."""
    size, lora = QWEN2_VL[setting.policy], setting.method != "full"
    count, in_4_bits, of_lora = sizes(setting.policy)
    trained = of_lora if lora else count
    fsdp2, offloaded = setting.stage == "FSDP2", setting.stage.endswith("offload")
    zero3 = setting.stage.startswith("3")
    whole = 2 * count
    if setting.method == "QLoRA":  # nested: a constant of 8 bits for 64 weights, and one of 32 bits for 256 of these
        whole += in_4_bits * (1 / 2 + 1 / 64 + 4 / (64 * 256) - 2)
    weights = whole / (setting.gpus if zero3 or fsdp2 else 1)
    state = state_bytes(setting.method, setting.stage, setting.gpus) * trained
    reference = weights if setting.reference and not lora else 0  # with LoRA it is the policy without its adapter
    if fsdp2 and not lora:
        weights = 0  # in the state
    communication = communication_bytes(setting.policy, setting.method, setting.stage)
    if offloaded:
        weights = state = reference = 0

    rows, length = setting.batch * setting.written, setting.prompt + setting.completion
    heads = size["hidden_size"] // size["num_attention_heads"] * size["num_key_value_heads"]
    token, logits = 2 * 28 * heads * 2, 3 * 4 * size["vocab_size"]  # keys and values of a token
    reading = 3 * 2 * size["intermediate_size"] * setting.prompt  # all prompts at once: a layer's feed-forward
    generating, cache = rows * max(logits, reading), rows * token * length
    if setting.compiled_policy and setting.method != "QLoRA" and setting.stage in ("-", "2"):
        cache = rows * token * -(-length // CACHE_LENGTHS) * CACHE_LENGTHS
    else:
        generating, cache = generating + cache, 0  # not kept
    if zero3:
        generating += whole  # ds3_gather_for_generation
    training = activation_bytes(setting.policy, lora, setting.batch, length, setting.checkpointing)
    if setting.method == "QLoRA":
        training += 2 * size["hidden_size"] * size["intermediate_size"]  # a layer's weights, back in bfloat16
    referring = 0
    if fsdp2 and not lora:
        training += 2 * trained  # accelerate's `no_sync`: until the last micro-batch, gradients are whole on each GPU
        referring = 2 * whole if setting.reference else 0  # TRL's `prepare_fsdp`: one unit, gathered and copied
    resident = rendering = 0
    if setting.generator != "none":
        resident, rendering = generator_bytes(setting.generator == "SD3", setting.render_batch, setting.compiled)
        resident += SCORER
    parts = {
        "weights": weights + reference,
        "trained": state,
        "cache": cache,
        "communication": communication,
        "generator_and_scorer": resident,
        "fixed": FIXED,
    }
    # The reference model runs while images are rendered; training waits for them.
    total = sum(parts.values()) + max(generating, referring + rendering, training)
    steps = {"generating": generating, "referring": referring, "training": training, "rendering": rendering}
    return parts | steps | {"peak": total}


def fits(peak_bytes: float) -> str:
    """Return the smallest GPU, in GB, that holds so many bytes; "none" if no GPU does."""
    return next((str(gpu) for gpu in GPUS if peak_bytes <= USABLE * gpu * GIB), "none")


def resident_bytes() -> int:
    """Return the resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check(lora: bool, batch: int) -> dict[str, float]:
    """Run a training step of a small policy on the CPU: count its bytes with fake tensors, and measure the process."""
    length = 288
    model = policy_on_meta(SMALL, lora, vision_depth=1)
    with counting(as_on_a_gpu=False) as fake:
        materialize(model)
        before = fake.peak = fake.live
        training_step(model, batch, length, keep_gradients=True)
    counted = fake.peak - before

    model = policy_on_meta(SMALL, lora, vision_depth=1)
    materialize(model)
    training_step(model, 1, 16, keep_gradients=True)  # loads what is loaded once
    model.zero_grad()
    before = highest = resident_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    training_step(model, batch, length, keep_gradients=True)
    done.set()
    watcher.join()
    return {"lora": lora, "batch": batch, "counted": counted, "measured": highest - before}


def table(header: str, rows: Iterable[list]) -> None:
    """Print a table in Markdown; numbers are bytes, shown in GiB."""
    print(f"\n| {header} |\n|{' --- |' * (header.count('|') + 1)}")
    for row in rows:
        cells = (f"{cell / GIB:.1f}" if isinstance(cell, float) else str(cell) for cell in row)
        print(f"| {' | '.join(cells)} |", flush=True)


def beside_measured() -> Iterator[list]:
    """Yield the calculated and the measured bytes of each point that was measured; CUDA's own are in neither."""
    for name, (setting, measured) in MEASURED.items():
        yield [name, calculated := peak(setting)["peak"] - FIXED, measured * GIB, f"{calculated / measured / GIB:.2f}"]
    for with_t5, batch, compiled, measured in RENDERED:
        calculated = float(sum(generator_bytes(with_t5, batch, compiled)))
        name = f"SD3 {'with' if with_t5 else 'without'} T5 alone, {batch} images{', compiled' * compiled}"
        yield [name, calculated, measured * GIB, f"{calculated / measured / GIB:.2f}"]


def micro_batches() -> Iterator[list]:
    """Yield the peaks of a GPU that does all, by rewrites at once and images at once, and the GPUs that hold them."""
    for policy, methods, batches in (("2B", ("QLoRA", "LoRA"), (8, 32, 64)), ("7B", ("LoRA",), (8, 16, 32))):
        for method, batch in itertools.product(methods, batches):
            setting = Setting(policy, method, batch=batch, written=max(64 // batch, 1), completion=128)
            ways = [
                replace(setting, generator=name, render_batch=n, compiled=compiled) for name, n, compiled in RENDERING
            ]
            peaks = [float(peak(way)["peak"]) for way in ways]
            training = float(peak(setting)["training"])
            shown = [f"{value / GIB:.1f}: {fits(value)}" for value in peaks]
            yield [policy, method, f"{batch} x {setting.written}", training, *shown]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="Compare a count with a real step on the CPU.")
    parser.add_argument("--output", type=Path, help="Write the figures, in bytes, as JSON.")
    options = parser.parse_args()
    quiet_libraries()
    if options.check:
        print("| a step of a small policy, on the CPU | batch | counted | the process grew by |")
        print("| --- | --- | --- | --- |")
        results = [check(lora, batch) for lora, batch in ((True, 1), (True, 4), (True, 8), (False, 4))]
        for row in results:
            figures = f"{row['counted'] / GIB:.2f} | {row['measured'] / GIB:.2f}"
            print(f"| {'LoRA' if row['lora'] else 'full'} | {row['batch']} | {figures} |")
    else:
        results = []

        def rows() -> Iterator[list]:
            for policy, generator, (method, stage, gpus) in itertools.product(QWEN2_VL, GENERATORS, METHODS):
                settings = [Setting(policy, method, stage, gpus, generator, batch) for batch in BATCHES]
                peaks = [peak(setting) for setting in settings]
                results.extend(asdict(setting) | row for setting, row in zip(settings, peaks, strict=True))
                figures = [float(row["peak"]) for row in peaks]
                yield [policy, method, stage, gpus, generator, *figures, fits(figures[1])]

        batches = " | ".join(f"batch {batch}" for batch in BATCHES)
        table(f"policy | method | ZeRO/FSDP | GPUs | renders here | {batches} | fits on (batch 8)", rows())
        ways = " | ".join(f"{name}, {n}{', compiled' * compiled}" for name, n, compiled in RENDERING[1:])
        table(f"policy | method | micro-batch x accumulation | training | none | {ways}", micro_batches())
        table("on an H100 | calculated | measured | ratio", beside_measured())
    if options.output:
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
