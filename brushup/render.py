"""The renderer: a diffusers text-to-image pipeline that turns prompts and seeds into pictures."""

import inspect
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from brushup.config import RenderConfig
from brushup.generator import check_names, find_tokenizers, limit_gpu_memory, load_pipeline


logger = logging.getLogger(__name__)

SET_BY_RENDERER = ("prompt", "num_images_per_prompt", "generator", "output_type", "return_dict")


@dataclass(frozen=True)
class RenderFailure:
    """Stands for a picture that the machine failed to draw; `reason` says why."""

    reason: str


def default_device() -> str:
    """cuda if there is one, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


class Renderer:
    """Draws pictures with any diffusers text-to-image pipeline.

    Each picture starts from noise of its own seed, made on the CPU, so the same prompt and seed give the same picture
    in any batch and on any rank; only rounding differs (on a CPU in float32 by at most 2 of 255 a channel). With a
    scheduler that adds noise at each step, that holds if the pipeline hands it the seeds; those of Stable Diffusion 3
    and FLUX do not.

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
        memory_savers: any of `brushup.generator.MEMORY_SAVERS`.
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
        self.generator = generator
        self.device = device or default_device()
        self.batch_size = batch_size
        self.render_kwargs = dict(render_kwargs or {})
        self.images_drawn = 0
        device = torch.empty(0, device=self.device).device  # with its index: "cuda" is this rank's GPU
        limit_gpu_memory(gpu_memory_fraction, device)
        pipeline = load_pipeline(
            generator,
            init_kwargs or {},
            dtype,
            device,
            scheduler,
            scheduler_kwargs or {},
            lora,
            lora_scale,
            memory_savers,
        )
        takes = inspect.signature(pipeline.__call__).parameters
        allowed = [name for name in takes if name not in SET_BY_RENDERER]
        check_names("render_kwargs", self.render_kwargs, allowed, type(pipeline).__name__)

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
        """Draws each (prompt, seed); equal jobs are drawn once, and a prompt with several seeds is encoded once (for
        most pipelines: see `shares_prompts`).

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
        # Sana only warns of running out of memory in its decoder, and then lacks its `image`
        except (torch.OutOfMemoryError, UnboundLocalError) as error:
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
