"""Loads a generator: any diffusers text-to-image pipeline, with the scheduler, LoRA and memory savers asked for."""

import difflib
import inspect
from collections.abc import Collection, Iterable
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin, SD3Transformer2DModel
from diffusers.loaders.lora_base import LoraBaseMixin
from transformers import PreTrainedTokenizerBase


# What `from_pretrained` of diffusers takes besides the parts of the pipeline. It ignores all else without an error.
FROM_PRETRAINED_ARGUMENTS = (
    "cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "custom_pipeline",
    "custom_revision", "provider", "sess_options", "provider_options", "device_map", "max_memory", "offload_folder",
    "offload_state_dict", "low_cpu_mem_usage", "variant", "use_safetensors", "use_onnx", "load_connected_pipeline",
    "quantization_config", "use_flashpack", "disable_mmap", "trust_remote_code",
)  # fmt: skip
OFFLOADS = ("model_cpu_offload", "sequential_cpu_offload")
MEMORY_SAVERS = ("attention_slicing", "vae_slicing", "vae_tiling", *OFFLOADS)


def check_names(
    setting: str, given: Iterable[str], known: Collection[str], owner: str, what: str = "argument"
) -> None:
    """Raises a ValueError with the near misses and the list if a given name is not among the known ones."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known)
            hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
            raise ValueError(f"{setting}: {owner} takes no {what} {name!r}{hint}; it takes {', '.join(known)}")


def arguments_of(function: Any) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def predicts_flow(scheduler: SchedulerMixin) -> bool:
    """Whether it is for a model of flow matching, which predicts a velocity instead of noise."""
    config = scheduler.config
    return type(scheduler).__name__.startswith("Flow") or (
        "use_flow_sigmas" in arguments_of(type(scheduler).__init__)
        and config.use_flow_sigmas
        and config.prediction_type == "flow_prediction"
    )


def make_scheduler(pipeline: DiffusionPipeline, name: str | None, settings: dict[str, Any]) -> SchedulerMixin:
    """The scheduler `name` (default: of the pipeline's own class) with the settings of the pipeline's own and these.

    Whether the model predicts flow or noise decides what fits. diffusers' `compatibles` do not tell: for Stable
    Diffusion they lack LCM's, for Sana they have some that know no flow, and for FlowMatchEuler they have none at all.

    Raises:
        ValueError: diffusers has no such scheduler, it has no such setting, or it does not fit the model.
    """
    own = pipeline.scheduler
    name = name or type(own).__name__
    known = [each for each in dir(diffusers) if each.endswith("Scheduler")]
    check_names("scheduler", [name], known, "diffusers", "scheduler")
    kind = getattr(diffusers, name)
    check_names("scheduler_kwargs", settings, arguments_of(kind.__init__), name)
    scheduler = kind.from_config(own.config, **settings)
    if predicts_flow(own) and not predicts_flow(scheduler):
        shift = own.config.get("shift") or own.config.get("flow_shift")
        raise ValueError(
            f"scheduler: the model of {type(pipeline).__name__} predicts flow, and {name} takes noise. Use one whose "
            "name starts with FlowMatch; or, if it has these, scheduler_kwargs: {use_flow_sigmas: true, "
            f"prediction_type: flow_prediction, flow_shift: {shift}}}"
        )
    if predicts_flow(scheduler) and not predicts_flow(own):
        raise ValueError(
            f"scheduler: the model of {type(pipeline).__name__} predicts noise, and {name} (with these "
            f"scheduler_kwargs) takes flow. Use e.g. one of {', '.join(sorted(own._compatibles))}"
        )
    return scheduler


def fuse_lora(pipeline: DiffusionPipeline, lora: str, scale: float) -> None:
    """Adds the LoRA weights, times `scale`, to the weights of the pipeline.

    Raises:
        ValueError: the pipeline takes no LoRA, the weights cannot be loaded, or none of them is for this pipeline.
    """
    name = type(pipeline).__name__
    if not isinstance(pipeline, LoraBaseMixin):
        raise ValueError(f"generator_lora: diffusers loads no LoRA into {name}; leave it out")
    try:
        pipeline.load_lora_weights(lora)
    except (OSError, RuntimeError, ValueError) as error:
        why = str(error)[:300]  # it may list hundreds of weights
        raise ValueError(f"generator_lora: cannot load {lora!r} into {name}: {why}") from error
    if not pipeline.get_list_adapters():
        raise ValueError(f"generator_lora: no weight in {lora!r} is for {name}; use one that was trained for it")
    pipeline.fuse_lora(lora_scale=scale)
    pipeline.unload_lora_weights()  # the adapters' modules: their weights are in the model now


def place(pipeline: DiffusionPipeline, device: torch.device, memory_savers: Collection[str]) -> None:
    """Turns the memory savers on and moves the pipeline to the device, unless it is to be offloaded.

    Raises:
        ValueError: a memory saver that this pipeline, or this device, does not take.
    """
    offloads = [saver for saver in memory_savers if saver in OFFLOADS]
    if len(offloads) > 1:
        raise ValueError(f"generator_memory: {' and '.join(offloads)} exclude each other; leave one out")
    for saver in memory_savers:
        try:
            if saver == "attention_slicing":
                if not any(hasattr(part, "set_attention_slice") for part in pipeline.components.values()):
                    raise NotImplementedError("none of its models can slice attention (a U-Net can)")
                pipeline.enable_attention_slicing()
            elif saver == "vae_slicing":
                pipeline.vae.enable_slicing()
            elif saver == "vae_tiling":
                pipeline.vae.enable_tiling()
            elif device.type == "cpu":
                raise NotImplementedError("it keeps weights off a GPU, and render_device is cpu")
            elif saver == "model_cpu_offload":
                pipeline.enable_model_cpu_offload(device=device)
            else:
                pipeline.enable_sequential_cpu_offload(device=device)
        except (AttributeError, NotImplementedError, ValueError) as error:
            raise ValueError(
                f"generator_memory: {saver} does not work with {type(pipeline).__name__}: {error}. Leave it out."
            ) from error
    if not offloads:
        pipeline.to(device)


def find_denoiser(pipeline: DiffusionPipeline) -> torch.nn.Module:
    """The transformer or U-Net; a ValueError if there is none."""
    denoiser = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    if not denoiser:
        name = type(pipeline).__name__
        raise ValueError(f"compile_generator, fuse_qkv: {name} has neither a transformer nor a unet; leave them out")
    return denoiser


def fuse_qkv_projections(pipeline: DiffusionPipeline) -> None:
    """Makes queries, keys and values of the denoiser with one matrix product instead of three.

    Raises:
        ValueError: the denoiser can't do that.
    """
    denoiser = find_denoiser(pipeline)
    config = denoiser.config
    if not hasattr(denoiser, "fuse_qkv_projections"):
        raise ValueError(f"fuse_qkv: {type(denoiser).__name__} can't fuse them; leave it out")
    if isinstance(denoiser, SD3Transformer2DModel) and (config.qk_norm or config.dual_attention_layers):
        raise ValueError("fuse_qkv: diffusers' fused attention lacks what Stable Diffusion 3.5 has; leave it out")
    denoiser.fuse_qkv_projections()


def compile_models(pipeline: DiffusionPipeline) -> None:
    """Compiles the denoiser and the VAE's decoder, each new size of a batch anew, at its first use."""
    find_denoiser(pipeline).compile(dynamic=False)
    if decoder := getattr(getattr(pipeline, "vae", None), "decoder", None):
        decoder.compile(dynamic=False)


def limit_gpu_memory(fraction: float, device: torch.device) -> None:
    """Raises a ValueError for a fraction that is not above 0 and at most 1."""
    if not 0 < fraction <= 1:
        raise ValueError(f"gpu_memory_fraction: {fraction} is not above 0 and at most 1")
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(float(fraction), device)


def find_tokenizers(
    pipeline: DiffusionPipeline, max_sequence_length: int | None
) -> dict[str, tuple[PreTrainedTokenizerBase, int]]:
    """The pipeline's tokenizers and how many tokens each of them reads, by `clip`, `t5`, `gemma`, ..."""
    found: dict[str, tuple[PreTrainedTokenizerBase, int]] = {}
    for part, tokenizer in pipeline.components.items():
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            continue
        name = type(tokenizer).__name__.split("Tokenizer")[0].lower() or part
        limit = tokenizer.model_max_length
        if name != "clip" and max_sequence_length:
            limit = max_sequence_length
        if name in found and found[name][1] != limit:
            name = part
        found.setdefault(name, (tokenizer, limit))
    return found


def load_pipeline(
    generator: str,
    init_kwargs: dict[str, Any],
    dtype: str,
    device: torch.device,
    scheduler: str | None,
    scheduler_kwargs: dict[str, Any],
    lora: str | None,
    lora_scale: float,
    memory_savers: Collection[str],
    fuse_qkv: bool,
) -> DiffusionPipeline:
    """The pipeline, ready to draw; the arguments are those of `Renderer`.

    Raises:
        ValueError: a setting that does not exist or that this pipeline does not take; the message starts with its
            YAML key.
    """
    check_names("generator_memory", memory_savers, MEMORY_SAVERS, "Brushup", "memory saver")
    torch_dtype = getattr(torch, dtype, None)
    if not isinstance(torch_dtype, torch.dtype):
        raise ValueError(f"render_dtype: torch has no dtype {dtype!r}; use float32, bfloat16 or float16")
    pipeline = DiffusionPipeline.from_pretrained(generator, **{**init_kwargs, "dtype": torch_dtype})
    pipeline.set_progress_bar_config(disable=True)
    name = type(pipeline).__name__
    if "prompt" not in inspect.signature(pipeline.__call__).parameters:
        raise ValueError(f"generator: {name} is no text-to-image pipeline: its call takes no prompt")
    known = [*arguments_of(type(pipeline).__init__), *FROM_PRETRAINED_ARGUMENTS]
    check_names("generator_init_kwargs", init_kwargs, known, name)
    if scheduler or scheduler_kwargs:
        pipeline.scheduler = make_scheduler(pipeline, scheduler, scheduler_kwargs)
    if lora:
        fuse_lora(pipeline, lora, lora_scale)
    if fuse_qkv:
        fuse_qkv_projections(pipeline)
    place(pipeline, device, memory_savers)
    return pipeline
