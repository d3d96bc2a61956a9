"""The renderer: a diffusers text-to-image pipeline that turns prompts and seeds into images."""

import contextlib
import copy
import functools
import inspect
import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from brushup.config import RenderConfig
from brushup.render.isolation import HOW_RENDERED, IsolationCheck, OutOfMemory, small
from brushup.render.job import FailureKind
from brushup.render.pipeline import (
    call_pipeline,
    check_names,
    compile_models,
    find_tokenizers,
    limit_gpu_memory,
    load_pipeline,
)


logger = logging.getLogger(__name__)

SET_BY_RENDERER = ("prompt", "num_images_per_prompt", "generator", "output_type", "return_dict")


@dataclass(frozen=True)
class RenderFailure:
    """Stands for an image that the machine failed to render; `reason` says why."""

    reason: str
    kind: FailureKind = "other"


@dataclass(frozen=True, eq=False)
class RenderedImage:
    """A rendered image: its `pixels`, uint8, (3, height, width), converted to a PIL image at the first use of that."""

    pixels: torch.Tensor

    @classmethod
    def of(cls, image: Image.Image, device: str = "cpu") -> "RenderedImage":
        """Return a PIL image as if it had been rendered, its pixels on the device."""
        return cls(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous().to(device))

    @functools.cached_property
    def image(self) -> Image.Image:
        """The PIL image, RGB."""
        return Image.fromarray(self.pixels.permute(1, 2, 0).cpu().numpy())


PromptAndSeed = tuple[str, int]
Rendered = RenderedImage | RenderFailure


class Renderer:
    """Renders images with any diffusers text-to-image pipeline.

    Each image starts from noise of its own seed, made on the CPU in float32, so the same prompt and seed give the same
    image in any batch, on any rank and in any dtype; only rounding differs (on a CPU in float32 by at most 2 of 255 a
    channel). At load `IsolationCheck` finds out by rendering which images the pipeline may render in one call, so that
    this holds.

    Args:
        config: the settings of the generator.

    Attributes:
        pipeline: the diffusers pipeline.
        device: where it renders.
        batch_size: images rendered at once; out of memory halves it.
        images_drawn: images rendered so far.
        sharing: which images are rendered in one call.

    Raises:
        ValueError: a setting does not exist, this pipeline does not take it, or it does not render an image from a
            prompt and a seed alone; the message starts with the YAML key.
    """

    def __init__(self, config: RenderConfig):
        self.generator = config.generator
        self.device = config.device
        self.batch_size = config.batch_size
        device = torch.empty(0, device=self.device).device  # with its index: "cuda" is this rank's GPU
        limit_gpu_memory(config.gpu_memory_fraction, device)
        self.pipeline = load_pipeline(config, device)
        # Asked for "pt", pipelines without a VAE of that name (Kandinsky, PRX in pixels) return pixels in -1..1.
        has_vae = getattr(self.pipeline, "vae", None) is not None
        is_processed = isinstance(getattr(self.pipeline, "image_processor", None), VaeImageProcessor)
        self.output_type = "pt" if has_vae and is_processed else "np"
        self._compiled = config.compile_generator
        if self._compiled:
            compile_models(self.pipeline)
        self._checked_with: dict[str, Any] | None = None
        self._take("render_kwargs", config.render_kwargs)

    def with_kwargs(self, setting: str, kwargs: dict[str, Any]) -> "Renderer":
        """Return a renderer of the same pipeline with these arguments in place of its own; the others stay.

        It counts its images, and what fits into memory, for itself.

        Args:
            setting: the YAML key that the arguments come from.
            kwargs: of the pipeline's call.
        """
        other = copy.copy(self)
        other._take(setting, self.render_kwargs | kwargs)
        return other

    def _take(self, setting: str, kwargs: dict[str, Any]) -> None:
        """Check the arguments of the pipeline's call by rendering with them, and render with them from now on."""
        self.render_kwargs, self.images_drawn = dict(kwargs), 0
        parameters = inspect.signature(self.pipeline.__call__).parameters
        allowed = [name for name in parameters if name not in SET_BY_RENDERER]
        check_names(setting, kwargs, allowed, type(self.pipeline).__name__)
        # Compiled models want batches of one size, whatever the numbers of prompts and seeds are.
        can_share = "num_images_per_prompt" in parameters and not self._compiled
        modes = [mode for mode in HOW_RENDERED if can_share or not mode.seeds]
        check = IsolationCheck(self.pipeline, self.render_kwargs, self.output_type, modes, setting)
        if check.trial_kwargs != self._checked_with:  # the number of steps alone changes nothing
            with torch.compiler.set_stance("force_eager") if self._compiled else contextlib.nullcontext():
                self.sharing = check.run()
            self._checked_with = small(self.pipeline, self.render_kwargs)  # the check may have changed its own
        if not any(self.sharing):
            self.batch_size = 1
        length = parameters.get("max_sequence_length")
        self._tokenizers = find_tokenizers(
            self.pipeline, self.render_kwargs.get("max_sequence_length", length and length.default)
        )
        if self._compiled:
            self._warm_up()

    @property
    def token_limits(self) -> dict[str, int]:
        """Tokens of a prompt that each tokenizer of the generator reads, e.g. {"clip": 77, "t5": 256}."""
        return {name: limit for name, (_, limit) in self._tokenizers.items()}

    def count_tokens(self, prompts: Sequence[str]) -> list[dict[str, int]]:
        """Return the length of each prompt for each tokenizer, uncut, special tokens included."""
        counts: list[dict[str, int]] = [{} for _ in prompts]
        for name, (tokenizer, _) in self._tokenizers.items():
            for count, prompt in zip(counts, prompts, strict=True):
                count[name] = len(tokenizer(prompt, verbose=False)["input_ids"])  # else it warns of long ones
        return counts

    def render(self, jobs: Sequence[PromptAndSeed]) -> list[Image.Image | RenderFailure]:
        """Render each (prompt, seed) as `draw` does, and return PIL images."""
        return [item if isinstance(item, RenderFailure) else item.image for item in self.draw(jobs)]

    def draw(self, jobs: Sequence[PromptAndSeed]) -> list[Rendered]:
        """Render each (prompt, seed). Equal jobs are rendered once, and a prompt with several seeds is encoded once
        (for most pipelines: see `sharing`).

        Returns:
            In the order of the jobs a `RenderedImage`, its pixels on the renderer's device, or a `RenderFailure`: the
            pipeline raised, or the image has NaNs or is blank (all pixels alike). A failure does not touch the other
            batches. Out of memory halves the batch size and goes on; only a single image that does not fit fails.
        """
        rendered = self._draw_all(list(dict.fromkeys(jobs)))
        return [rendered[job] for job in jobs]

    def _draw_all(self, jobs: list[PromptAndSeed]) -> dict[PromptAndSeed, Rendered]:
        rendered: dict[PromptAndSeed, Rendered] = {}
        for prompts, seeds in self._batches(jobs):
            rendered.update(self._draw_batch(prompts, seeds))
        return rendered

    def _batches(self, jobs: list[PromptAndSeed]) -> Iterator[tuple[list[str], list[list[int]]]]:
        """Yield batches of prompts with the same number of seeds each, since a pipeline takes one number for all.

        That number is one if the pipeline can't share a prompt.
        """
        seeds_of: dict[str, list[int]] = defaultdict(list)
        for prompt, seed in jobs:
            seeds_of[prompt].append(seed)
        longest = self.batch_size if self.sharing.seeds else 1
        by_count: dict[int, list[tuple[str, list[int]]]] = defaultdict(list)
        for prompt, seeds in seeds_of.items():
            for start in range(0, len(seeds), longest):
                chunk = seeds[start : start + longest]
                by_count[len(chunk)].append((prompt, chunk))
        for count, items in by_count.items():
            while items:
                width = max(1, self.batch_size // count) if self.sharing.prompts else 1  # may get smaller meanwhile
                prompts, seeds = zip(*items[:width], strict=True)
                del items[:width]
                yield list(prompts), list(seeds)

    def _draw_batch(self, prompts: list[str], seeds: list[list[int]]) -> dict[PromptAndSeed, Rendered]:
        """Render one batch; out of memory halves the batch size and renders it in parts."""
        jobs = [(prompt, seed) for prompt, chunk in zip(prompts, seeds, strict=True) for seed in chunk]
        filled = jobs + [jobs[-1]] * (self.batch_size - len(jobs) if self._compiled else 0)
        try:
            images = call_pipeline(
                self.pipeline,
                self.render_kwargs,
                self.output_type,
                prompts + [prompts[-1]] * (len(filled) - len(jobs)),
                len(seeds[0]),
                [seed for _, seed in filled],
            )
            rendered = dict(zip(jobs, self._checked(images[: len(jobs)]), strict=True))
        except OutOfMemory as error:
            out_of_memory = str(error)  # and not the error itself: its traceback holds the memory
        except RuntimeError as error:
            return dict.fromkeys(jobs, RenderFailure(f"{type(error).__name__}: {error}"))
        else:
            self.images_drawn += len(jobs)
            return rendered
        if len(filled) == 1:
            reason = f"out of memory for a single image: {out_of_memory}"
            return {jobs[0]: RenderFailure(reason, "out_of_memory")}
        self.batch_size = min(self.batch_size, len(filled) // 2)
        logger.warning("out of memory with %d images at once; going on with %d", len(filled), self.batch_size)
        torch.cuda.empty_cache()
        return self._draw_all(jobs)

    def _warm_up(self) -> None:
        """Render once: the first compiled batch takes minutes, for which a job in a service has no time."""
        (rendered,) = self.draw([("a picture", 0)])
        if not self.images_drawn:
            raise RuntimeError(
                f"compile_generator: once compiled, it does not render; leave it out. {rendered.reason}"
            )
        self.images_drawn = 0

    def _checked(self, images: torch.Tensor) -> list[Rendered]:
        """Return the images of `call_pipeline` as uint8; an image with NaNs, and a blank one, is a failure."""
        images = images.to(self.device, torch.float32)
        low, high = images.flatten(1).aminmax(dim=1)  # NaN if a pixel is
        checked: list[Rendered] = []
        pixels = (images * 255).round().to(torch.uint8).contiguous()
        for image, spread in zip(pixels, (high - low).tolist(), strict=True):  # one transfer a batch
            if not math.isfinite(spread):
                checked.append(RenderFailure("the image has NaN or infinite pixels", "bad_image"))
            elif spread < 2 / 255:
                checked.append(RenderFailure("the image is blank: all pixels are alike", "bad_image"))
            else:
                checked.append(RenderedImage(image))
        return checked
