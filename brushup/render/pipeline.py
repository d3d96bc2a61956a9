"""Any diffusers text-to-image pipeline, loaded with its scheduler, LoRA weights and memory savers."""

import difflib
import inspect
import sys
from collections.abc import Collection, Iterable
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.loaders.lora_base import LoraBaseMixin
from diffusers.utils.torch_utils import randn_tensor
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from brushup.config import RenderConfig


# Arguments of diffusers' `from_pretrained` besides the parts of the pipeline. It ignores any other without an error.
FROM_PRETRAINED_ARGUMENTS = (
    "cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "custom_pipeline",
    "custom_revision", "provider", "sess_options", "provider_options", "device_map", "max_memory", "offload_folder",
    "offload_state_dict", "low_cpu_mem_usage", "variant", "use_safetensors", "use_onnx", "load_connected_pipeline",
    "quantization_config", "use_flashpack", "disable_mmap", "trust_remote_code",
)  # fmt: skip
OFFLOADS = ("model_cpu_offload", "sequential_cpu_offload")
MEMORY_SAVERS = ("attention_slicing", "vae_slicing", "vae_tiling", *OFFLOADS)


def check_names(
    setting: str, names: Iterable[str], known: Collection[str], owner: str, kind: str = "argument"
) -> None:
    """Raise a ValueError, with the near misses and the list, if a name is not among the known ones.

    Args:
        setting: the YAML key that holds the names.
        names: as the user wrote them.
        known: all that exist.
        owner: the class that takes them.
        kind: the noun for a name.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known)
            hint = f" (did you mean {' or '.join(map(repr, near))}?)" if near else ""
            raise ValueError(f"{setting}: {owner} takes no {kind} {name!r}{hint}; it takes {', '.join(known)}")


def arguments_of(function: Any) -> list[str]:
    """Return the names of the function's parameters, without `self`."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def predicts_flow(scheduler: SchedulerMixin) -> bool:
    """Return whether the scheduler is for a flow-matching model, which predicts a velocity instead of noise."""
    config = scheduler.config
    return type(scheduler).__name__.startswith("Flow") or (
        "use_flow_sigmas" in arguments_of(type(scheduler).__init__)
        and config.use_flow_sigmas
        and config.prediction_type == "flow_prediction"
    )


def make_scheduler(pipeline: DiffusionPipeline, name: str | None, settings: dict[str, Any]) -> SchedulerMixin:
    """Return a scheduler of this class (default: the pipeline's) with the settings of the pipeline's scheduler.

    Whether the model predicts flow or noise decides which scheduler fits. diffusers' `compatibles` do not tell: for
    Stable Diffusion they lack LCM's, for Sana some of them know no flow, and for FlowMatchEuler there are none.

    Args:
        pipeline: the pipeline, loaded.
        name: a class of diffusers.
        settings: replace those of the pipeline's scheduler.

    Raises:
        ValueError: diffusers has no such scheduler, it has no such setting, or it does not fit the model.
    """
    default = pipeline.scheduler
    name = name or type(default).__name__
    known = [attribute for attribute in dir(diffusers) if attribute.endswith("Scheduler")]
    check_names("scheduler", [name], known, "diffusers", "scheduler")
    scheduler_class = getattr(diffusers, name)
    check_names("scheduler_kwargs", settings, arguments_of(scheduler_class.__init__), name)
    scheduler = scheduler_class.from_config(default.config, **settings)
    if predicts_flow(default) and not predicts_flow(scheduler):
        shift = default.config.get("shift") or default.config.get("flow_shift")
        raise ValueError(
            f"scheduler: the model of {type(pipeline).__name__} predicts flow, and {name} takes noise. Use one whose "
            "name starts with FlowMatch; or, if it has these, scheduler_kwargs: {use_flow_sigmas: true, "
            f"prediction_type: flow_prediction, flow_shift: {shift}}}"
        )
    if predicts_flow(scheduler) and not predicts_flow(default):
        raise ValueError(
            f"scheduler: the model of {type(pipeline).__name__} predicts noise, and {name} (with these "
            f"scheduler_kwargs) takes flow. Use e.g. one of {', '.join(sorted(default._compatibles))}"
        )
    return scheduler


def fuse_lora(pipeline: DiffusionPipeline, lora: str) -> None:
    """Add the LoRA weights to the weights of the pipeline.

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
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()  # the adapters' modules: their weights are in the model now


def place(pipeline: DiffusionPipeline, device: torch.device, memory_savers: Collection[str]) -> None:
    """Turn the memory savers on, and move the pipeline to the device, unless it is to be offloaded.

    Raises:
        ValueError: this pipeline, or this device, does not take a memory saver.
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
    """Return the transformer or U-Net; raise a ValueError if there is none."""
    denoiser = getattr(pipeline, "transformer", None) or getattr(pipeline, "unet", None)
    if not denoiser:
        name = type(pipeline).__name__
        raise ValueError(f"compile_generator: {name} has neither a transformer nor a unet; leave it out")
    return denoiser


def compile_models(pipeline: DiffusionPipeline) -> None:
    """Compile the denoiser and the VAE's decoder; each new batch size is compiled anew, at its first use."""
    find_denoiser(pipeline).compile(dynamic=False)
    if decoder := getattr(getattr(pipeline, "vae", None), "decoder", None):
        decoder.compile(dynamic=False)


def limit_gpu_memory(fraction: float, device: torch.device) -> None:
    """Limit this process to a share of the GPU's memory, above 0 to 1."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(float(fraction), device)


def find_tokenizers(
    pipeline: DiffusionPipeline, max_sequence_length: int | None
) -> dict[str, tuple[PreTrainedTokenizerBase, int]]:
    """Return the pipeline's tokenizers, each with the number of tokens it reads, by `clip`, `t5`, `gemma`, ...

    A tokenizer for which neither its files nor the pipeline name a limit is left out.
    """
    found: dict[str, tuple[PreTrainedTokenizerBase, int]] = {}
    for part, component in pipeline.components.items():
        tokenizer = getattr(component, "tokenizer", component)  # a processor has one
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or isinstance(tokenizer, ByT5Tokenizer):
            continue  # ByT5 reads only the words in quotes
        name = type(tokenizer).__name__.split("Tokenizer")[0].lower() or part
        limit = tokenizer.model_max_length
        if name != "clip" and max_sequence_length:
            limit = max_sequence_length
        elif limit >= VERY_LARGE_INTEGER:  # its files name no limit
            limit = getattr(pipeline, f"{part}_max_length", limit)
            if limit >= VERY_LARGE_INTEGER:
                continue
        if name in found and found[name][1] != limit:
            name = part
        found.setdefault(name, (tokenizer, limit))
    return found


def noise_in_float32(*arguments: Any, dtype: torch.dtype | None = None, **named: Any) -> torch.Tensor:
    """Return diffusers' `randn_tensor`, sampled in float32 and rounded to `dtype`.

    Sampled in 16 bits, a seed has other noise: all of it in PyTorch 2.11, whose CPU takes 8 or 11 bits of each random
    number in place of 24; in PyTorch 2.14 the last 16 values, if the count is no multiple of 16.
    """
    return randn_tensor(*arguments, dtype=torch.float32, **named).to(dtype or torch.float32)


def sample_noise_in_float32() -> None:
    """Make the modules of all pipelines and schedulers loaded so far sample noise by `noise_in_float32`."""
    for name, module in list(sys.modules.items()):
        if vars(module).get("randn_tensor") is randn_tensor and name not in (randn_tensor.__module__, __name__):
            module.randn_tensor = noise_in_float32


def load_pipeline(config: RenderConfig, device: torch.device) -> DiffusionPipeline:
    """Return the pipeline that the settings describe, ready to render on the device.

    Raises:
        ValueError: a setting does not exist or this pipeline does not take it; the message starts with its YAML key.
    """
    check_names("generator_memory", config.generator_memory, MEMORY_SAVERS, "Brushup", "memory saver")
    dtype = getattr(torch, config.render_dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"render_dtype: torch has no dtype {config.render_dtype!r}; use float32, bfloat16 or float16")
    diffusers.utils.logging.disable_progress_bar()
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            config.generator, **{**config.generator_init_kwargs, "dtype": dtype}
        )
    except (OSError, HFValidationError, SafetensorError) as error:
        raise ValueError(
            f"generator: {config.generator!r} cannot be loaded, as a folder or from the Hub: {error}"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    name = type(pipeline).__name__
    if "prompt" not in arguments_of(pipeline.__call__):
        raise ValueError(f"generator: {name} is no text-to-image pipeline: its call takes no prompt")
    known = [*arguments_of(type(pipeline).__init__), *FROM_PRETRAINED_ARGUMENTS]
    check_names("generator_init_kwargs", config.generator_init_kwargs, known, name)
    if config.scheduler or config.scheduler_kwargs:
        pipeline.scheduler = make_scheduler(pipeline, config.scheduler, config.scheduler_kwargs)
    if config.generator_lora:
        fuse_lora(pipeline, config.generator_lora)
    sample_noise_in_float32()
    place(pipeline, device, config.generator_memory)
    return pipeline


def call_pipeline(
    pipeline: DiffusionPipeline,
    render_kwargs: dict[str, Any],
    output_type: str,
    prompts: list[str],
    images_per_prompt: int,
    seeds: list[int],
) -> torch.Tensor:
    """Return images in 0..1, (count, 3, height, width).

    Args:
        pipeline: the pipeline, loaded.
        render_kwargs: arguments of its call; a text beside the prompt (`negative_prompt`, `prompt_2`) is for all.
        output_type: "pt", or "np" of pipelines whose tensors are not in 0..1.
        prompts: the prompts.
        images_per_prompt: above 1 only if the pipeline takes `num_images_per_prompt`.
        seeds: one an image, the first prompt's first.
    """
    arguments = {**render_kwargs, "prompt": prompts}
    if images_per_prompt > 1:
        arguments["num_images_per_prompt"] = images_per_prompt
    for name, value in arguments.items():
        if name.startswith(("negative_prompt", "prompt_")) and isinstance(value, str):  # pipelines want one per prompt
            arguments[name] = [value] * len(prompts)
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    with torch.inference_mode():
        images = pipeline(generator=generators, output_type=output_type, **arguments)[0]  # of Kandinsky 5: `image`
    return images if isinstance(images, torch.Tensor) else torch.from_numpy(images).permute(0, 3, 1, 2)
