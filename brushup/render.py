"""The renderer: a diffusers text-to-image pipeline that turns prompts and seeds into pictures."""

import inspect
import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image


logger = logging.getLogger(__name__)


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
    in any batch and on any rank; only rounding differs (on a CPU in float32 by at most 2 of 255 a channel).

    Args:
        generator: Hub id or folder of the pipeline.
        init_kwargs: passed to `from_pretrained`.
        render_kwargs: passed to the pipeline's call, e.g. `num_inference_steps`, `guidance_scale`, `height`.
        batch_size: pictures drawn at once.
        device: default `default_device()`.
        dtype: name of the torch dtype.

    Raises:
        ValueError: a render argument that this pipeline does not take.
    """

    def __init__(
        self,
        generator: str,
        init_kwargs: dict[str, Any] | None = None,
        render_kwargs: dict[str, Any] | None = None,
        batch_size: int = 8,
        device: str | None = None,
        dtype: str = "float32",
    ):
        self.device = device or default_device()
        self.batch_size = batch_size
        self.render_kwargs = dict(render_kwargs or {})
        self.images_drawn = 0
        self.pipeline = DiffusionPipeline.from_pretrained(
            generator, dtype=getattr(torch, dtype), **(init_kwargs or {})
        ).to(self.device)
        self.pipeline.set_progress_bar_config(disable=True)
        takes = inspect.signature(self.pipeline.__call__).parameters
        for name in self.render_kwargs:
            if name not in takes:
                raise ValueError(
                    f"render_kwargs: {type(self.pipeline).__name__} takes no argument {name!r}; it takes "
                    f"{', '.join(takes)}"
                )

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
        try:
            pictures = self.pipeline(
                prompt=prompts,
                num_images_per_prompt=len(seeds[0]),
                generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in jobs],
                output_type="pt",
                **self.render_kwargs,
            ).images.float()
        except torch.OutOfMemoryError as error:
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
    def _to_image(picture: torch.Tensor) -> Image.Image | RenderFailure:
        """`picture`: (3, height, width) in 0..1."""
        if not torch.isfinite(picture).all():
            return RenderFailure("the picture has NaN or infinite pixels")
        if picture.max() - picture.min() < 2 / 255:
            return RenderFailure("the picture is blank: all pixels are alike")
        pixels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0)
        return Image.fromarray(pixels.cpu().numpy())
