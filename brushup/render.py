"""The renderer: a diffusers text-to-image pipeline that turns prompts and seeds into pictures."""

import difflib
import inspect
import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.loaders.lora_base import LoraBaseMixin
from PIL import Image
from transformers import PreTrainedTokenizerBase

from brushup.config import RenderConfig


logger = logging.getLogger(__name__)

# What `from_pretrained` of diffusers takes besides the parts of the pipeline. It ignores all else without an error.
FROM_PRETRAINED_ARGUMENTS = (
    "cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "custom_pipeline",
    "custom_revision", "provider", "sess_options", "provider_options", "device_map", "max_memory", "offload_folder",
    "offload_state_dict", "low_cpu_mem_usage", "variant", "use_safetensors", "use_onnx", "load_connected_pipeline",
    "quantization_config", "use_flashpack", "disable_mmap", "trust_remote_code",
)  # fmt: skip
SET_BY_RENDERER = ("prompt", "num_images_per_prompt", "generator", "output_type", "return_dict")
OFFLOADS = ("model_cpu_offload", "sequential_cpu_offload")
MEMORY_SAVERS = ("attention_slicing", "vae_slicing", "vae_tiling", *OFFLOADS)


@dataclass(frozen=True)
class RenderFailure:
    """Stands for a picture that the machine failed to draw; `reason` says why."""

    reason: str


def default_device() -> str:
    """cuda if there is one, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


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
    known = [name for name in dir(diffusers) if name.endswith("Scheduler")]
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
        raise ValueError(f"generator_lora: cannot load {lora!r} into {name}: {error}") from error
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


class Renderer:
    """Draws pictures with any diffusers text-to-image pipeline.

    Each picture starts from noise of its own seed, made on the CPU, so the same prompt and seed give the same picture
    in any batch and on any rank; only rounding differs (on a CPU in float32 by at most 2 of 255 a channel).

    Args:
        generator: Hub id or folder of the pipeline.
        init_kwargs: passed to `from_pretrained`.
        render_kwargs: passed to the pipeline's call, e.g. `num_inference_steps`, `guidance_scale`, `negative_prompt`.
        batch_size: pictures drawn at once.
        device: default `default_device()`.
        dtype: name of the torch dtype.
        scheduler: class name of a diffusers scheduler; default: the pipeline's own.
        scheduler_kwargs: settings of the scheduler, which replace those of the pipeline's own.
        lora: LoRA weights to fuse: Hub id, folder or .safetensors file.
        lora_scale: how strongly they are fused.
        memory_savers: any of `MEMORY_SAVERS`.
        gpu_memory_fraction: share of the GPU's memory that this process may take, above 0 to 1.

    Raises:
        ValueError: a setting that does not exist or that this pipeline does not take; the message starts with its
            YAML key.
    """

    def __init__(
        self,
        generator: str,
        init_kwargs: dict[str, Any] | None = None,
        render_kwargs: dict[str, Any] | None = None,
        batch_size: int = 8,
        device: str | None = None,
        dtype: str = "float32",
        scheduler: str | None = None,
        scheduler_kwargs: dict[str, Any] | None = None,
        lora: str | None = None,
        lora_scale: float = 1.0,
        memory_savers: Collection[str] = (),
        gpu_memory_fraction: float = 0.85,
    ):
        self.device = device or default_device()
        self.batch_size = batch_size
        self.render_kwargs = dict(render_kwargs or {})
        self.images_drawn = 0
        check_names("generator_memory", memory_savers, MEMORY_SAVERS, "Brushup", "memory saver")
        torch_dtype = getattr(torch, dtype, None)
        if not isinstance(torch_dtype, torch.dtype):
            raise ValueError(f"render_dtype: torch has no dtype {dtype!r}; use float32, bfloat16 or float16")
        if not 0 < gpu_memory_fraction <= 1:
            raise ValueError(f"gpu_memory_fraction: {gpu_memory_fraction} is not above 0 and at most 1")
        place_on = torch.empty(0, device=self.device).device  # with its index: "cuda" is this rank's GPU
        if place_on.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(float(gpu_memory_fraction), place_on)

        pipeline = DiffusionPipeline.from_pretrained(generator, dtype=torch_dtype, **(init_kwargs or {}))
        pipeline.set_progress_bar_config(disable=True)
        name = type(pipeline).__name__
        takes = inspect.signature(pipeline.__call__).parameters
        if "prompt" not in takes:
            raise ValueError(f"generator: {name} is no text-to-image pipeline: its call takes no prompt")
        known = [*arguments_of(type(pipeline).__init__), *FROM_PRETRAINED_ARGUMENTS]
        check_names("generator_init_kwargs", init_kwargs or {}, known, name)
        check_names("render_kwargs", self.render_kwargs, [n for n in takes if n not in SET_BY_RENDERER], name)
        if scheduler or scheduler_kwargs:
            pipeline.scheduler = make_scheduler(pipeline, scheduler, scheduler_kwargs or {})
        if lora:
            fuse_lora(pipeline, lora, lora_scale)
        place(pipeline, place_on, memory_savers)

        self.pipeline = pipeline
        # Of several prompts with several pictures each, Sana, Lumina, AuraFlow, Hunyuan-DiT and others mix up the
        # attention masks (they repeat them in another order than the embeddings); a prompt a picture is always right.
        self.shares_prompts = "num_images_per_prompt" in takes and not any("attention_mask" in n for n in takes)
        length = takes.get("max_sequence_length")
        self._tokenizers = find_tokenizers(
            pipeline, self.render_kwargs.get("max_sequence_length", length and length.default)
        )

    @classmethod
    def from_config(cls, config: RenderConfig) -> "Renderer":
        """The renderer that the YAML file describes."""
        return cls(
            config.generator,
            config.generator_init_kwargs,
            config.render_kwargs,
            batch_size=config.render_batch_size,
            device=config.render_device,
            dtype=config.render_dtype,
            scheduler=config.scheduler,
            scheduler_kwargs=config.scheduler_kwargs,
            lora=config.generator_lora,
            lora_scale=config.generator_lora_scale,
            memory_savers=config.generator_memory,
            gpu_memory_fraction=config.gpu_memory_fraction,
        )

    @property
    def token_limits(self) -> dict[str, int]:
        """How many tokens of a prompt each tokenizer of the generator reads, e.g. {"clip": 77, "t5": 256}."""
        return {name: limit for name, (_, limit) in self._tokenizers.items()}

    def count_tokens(self, prompts: Sequence[str]) -> list[dict[str, int]]:
        """The length of each prompt for each tokenizer, uncut, special tokens included."""
        counts: list[dict[str, int]] = [{} for _ in prompts]
        for name, (tokenizer, _) in self._tokenizers.items():
            for count, prompt in zip(counts, prompts, strict=True):
                count[name] = len(tokenizer(prompt, verbose=False)["input_ids"])  # else it warns of long ones
        return counts

    def render(self, jobs: Sequence[tuple[str, int]]) -> list[Image.Image | RenderFailure]:
        """Draws each (prompt, seed); equal jobs are drawn once, and a prompt with several seeds is encoded once.

        Returns:
            In the order of the jobs a PIL image or a `RenderFailure`: the pipeline raised, or the picture has NaNs or
            is blank (all pixels alike). One failure does not touch the other batches. Out of memory halves the batch
            size and goes on; only a single picture that does not fit is a failure.
        """
        seeds_of: dict[str, list[int]] = defaultdict(list)
        for prompt, seed in dict.fromkeys(jobs):
            seeds_of[prompt].append(seed)
        drawn = self._draw_all(seeds_of)
        return [drawn[job] for job in jobs]

    def _draw_all(self, seeds_of: Mapping[str, list[int]]) -> dict[tuple[str, int], Image.Image | RenderFailure]:
        drawn: dict[tuple[str, int], Image.Image | RenderFailure] = {}
        for prompts, seeds in self._batches(seeds_of):
            drawn.update(self._draw(prompts, seeds))
        return drawn

    def _batches(self, seeds_of: Mapping[str, list[int]]) -> Iterator[tuple[list[str], list[list[int]]]]:
        """Batches of prompts that all have the same number of seeds, since a pipeline takes one number for all."""
        by_count: dict[int, list[tuple[str, list[int]]]] = defaultdict(list)
        for prompt, seeds in seeds_of.items():
            for start in range(0, len(seeds), self.batch_size):
                some = seeds[start : start + self.batch_size]
                by_count[len(some)].append((prompt, some))
        for count, items in by_count.items():
            while items:
                width = max(1, self.batch_size // count)  # running out of memory makes it smaller meanwhile
                prompts, seeds = zip(*items[:width], strict=True)
                del items[:width]
                yield list(prompts), list(seeds)

    @torch.inference_mode()
    def _draw(self, prompts: list[str], seeds: list[list[int]]) -> dict[tuple[str, int], Image.Image | RenderFailure]:
        jobs = [(prompt, seed) for prompt, some in zip(prompts, seeds, strict=True) for seed in some]
        if self.shares_prompts:
            arguments = {**self.render_kwargs, "prompt": prompts, "num_images_per_prompt": len(seeds[0])}
        else:
            arguments = {**self.render_kwargs, "prompt": [prompt for prompt, _ in jobs]}
        for name, value in arguments.items():
            if name.startswith("negative_prompt") and isinstance(value, str):  # some take it only as the prompts are
                arguments[name] = [value] * len(arguments["prompt"])
        try:
            pictures = self.pipeline(
                generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in jobs],
                output_type="np",  # of "pt", Kandinsky and others make pixels in -1..1
                **arguments,
            ).images
        except (
            torch.OutOfMemoryError,
            UnboundLocalError,
        ) as error:  # Sana only warns of the first, then lacks `image`
            out_of_memory = str(error)  # and not the error itself: its traceback holds the memory
        except RuntimeError as error:
            return dict.fromkeys(jobs, RenderFailure(f"{type(error).__name__}: {error}"))
        else:
            self.images_drawn += len(jobs)
            return {job: self._to_image(picture) for job, picture in zip(jobs, pictures, strict=True)}
        if len(jobs) == 1:
            return {jobs[0]: RenderFailure(f"out of memory for a single picture: {out_of_memory}")}
        self.batch_size = min(self.batch_size, len(jobs) // 2)
        logger.warning("out of memory with %d pictures at once; going on with %d", len(jobs), self.batch_size)
        torch.cuda.empty_cache()
        return self._draw_all(dict(zip(prompts, seeds, strict=True)))

    @staticmethod
    def _to_image(picture: np.ndarray) -> Image.Image | RenderFailure:
        """`picture`: (height, width, 3) in 0..1."""
        if not np.isfinite(picture).all():
            return RenderFailure("the picture has NaN or infinite pixels")
        if picture.max() - picture.min() < 2 / 255:
            return RenderFailure("the picture is blank: all pixels are alike")
        return Image.fromarray((picture * 255).round().astype(np.uint8))
