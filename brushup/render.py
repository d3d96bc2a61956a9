"""The renderer: a diffusers text-to-image pipeline that turns prompts and seeds into pictures."""

import functools
import inspect
import logging
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from brushup.batch_size import BatchSizeSearch
from brushup.config import RenderConfig
from brushup.generator import check_names, compile_models, find_tokenizers, limit_gpu_memory, load_pipeline


logger = logging.getLogger(__name__)

SET_BY_RENDERER = ("prompt", "num_images_per_prompt", "generator", "output_type", "return_dict")


@dataclass(frozen=True)
class RenderFailure:
    """Stands for a picture that the machine failed to draw; `reason` says why."""

    reason: str


@dataclass(frozen=True, eq=False)
class Picture:
    """A drawn picture: its `pixels`, uint8, (3, height, width), and, when it is asked for, the PIL image of them."""

    pixels: torch.Tensor

    @classmethod
    def of(cls, image: Image.Image, device: str = "cpu") -> "Picture":
        """The picture that a PIL image shows, its pixels on `device`."""
        return cls(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous().to(device))

    @functools.cached_property
    def image(self) -> Image.Image:
        """RGB; made once."""
        return Image.fromarray(self.pixels.permute(1, 2, 0).cpu().numpy())


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
        batch_size: pictures drawn at once; "auto": see [`BatchSizeSearch`].
        device: default `default_device()`.
        dtype: name of the torch dtype.
        scheduler: class name of a diffusers scheduler; default: the pipeline's own.
        scheduler_kwargs: settings of the scheduler, which replace those of the pipeline's own.
        lora: LoRA weights to fuse: Hub id, folder or .safetensors file.
        lora_scale: how strongly they are fused.
        memory_savers: any of `brushup.generator.MEMORY_SAVERS`.
        gpu_memory_fraction: share of the GPU's memory that this process may take, above 0 to 1.
        compile_models: compile the denoiser and the decoder for batches of `batch_size`: smaller ones are filled up.
            Loading takes minutes longer; with "auto", the first batch once the size is known.
        fuse_qkv: one matrix product for queries, keys and values.

    Raises:
        ValueError: a setting that does not exist or that this pipeline does not take; the message starts with its
            YAML key.
    """

    def __init__(
        self,
        generator: str,
        init_kwargs: dict[str, Any] | None = None,
        render_kwargs: dict[str, Any] | None = None,
        batch_size: int | str = 8,
        device: str | None = None,
        dtype: str = "float32",
        scheduler: str | None = None,
        scheduler_kwargs: dict[str, Any] | None = None,
        lora: str | None = None,
        lora_scale: float = 1.0,
        memory_savers: Collection[str] = (),
        gpu_memory_fraction: float = 0.85,
        compile_models: bool = False,
        fuse_qkv: bool = False,
    ):
        self.generator = generator
        self.device = device or default_device()
        self.render_kwargs = dict(render_kwargs or {})
        self.images_drawn = 0
        device = torch.empty(0, device=self.device).device  # with its index: "cuda" is this rank's GPU
        self._search = BatchSizeSearch(device) if batch_size == "auto" else None
        self.batch_size = self._search.size if self._search else batch_size
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
            fuse_qkv,
        )
        takes = inspect.signature(pipeline.__call__).parameters
        allowed = [name for name in takes if name not in SET_BY_RENDERER]
        check_names("render_kwargs", self.render_kwargs, allowed, type(pipeline).__name__)

        self.pipeline = pipeline
        # Of several prompts with several pictures each, Sana, Lumina, AuraFlow, Hunyuan-DiT and others mix up the
        # attention masks (they repeat them in another order than the embeddings); a prompt a picture is always right.
        # And compiled models want batches of one size, whatever the numbers of prompts and seeds are.
        sharing = "num_images_per_prompt" in takes and not any("attention_mask" in name for name in takes)
        self.shares_prompts = sharing and not compile_models
        length = takes.get("max_sequence_length")
        # Of "pt", pipelines without a VAE of that name (Kandinsky, PRX in pixels) make pixels in -1..1.
        has_vae = getattr(pipeline, "vae", None) is not None
        processed = isinstance(getattr(pipeline, "image_processor", None), VaeImageProcessor)
        self.output_type = "pt" if has_vae and processed else "np"
        self._tokenizers = find_tokenizers(
            pipeline, self.render_kwargs.get("max_sequence_length", length and length.default)
        )
        self._compile_models = compile_models
        self._compiled = False
        if compile_models and not self._search:
            self._compile()

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
            compile_models=config.compile_generator,
            fuse_qkv=config.fuse_qkv,
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
        """As `draw`, with PIL images."""
        return [made if isinstance(made, RenderFailure) else made.image for made in self.draw(jobs)]

    def draw(self, jobs: Sequence[tuple[str, int]]) -> list[Picture | RenderFailure]:
        """Draws each (prompt, seed); equal jobs are drawn once, and a prompt with several seeds is encoded once (for
        most pipelines: see `shares_prompts`).

        Returns:
            In the order of the jobs a `Picture`, its pixels on the renderer's device, or a `RenderFailure`: the
            pipeline raised, or the picture has NaNs or is blank (all pixels alike). One failure does not touch the
            other batches. Out of memory halves the batch size and goes on; only a single picture that does not fit is
            a failure.
        """
        drawn = self._draw_all(list(dict.fromkeys(jobs)))
        return [drawn[job] for job in jobs]

    def _draw_all(self, jobs: list[tuple[str, int]]) -> dict[tuple[str, int], Picture | RenderFailure]:
        drawn: dict[tuple[str, int], Picture | RenderFailure] = {}
        for prompts, seeds in self._batches(jobs):
            drawn.update(self._draw_batch(prompts, seeds))
        return drawn

    def _batches(self, jobs: list[tuple[str, int]]) -> Iterator[tuple[list[str], list[list[int]]]]:
        """Batches of prompts that all have the same number of seeds, since a pipeline takes one number for all; that
        is one if the pipeline can't share a prompt.
        """
        seeds_of: dict[str, list[int]] = defaultdict(list)
        for prompt, seed in jobs:
            seeds_of[prompt].append(seed)
        longest = self.batch_size if self.shares_prompts else 1
        by_count: dict[int, list[tuple[str, list[int]]]] = defaultdict(list)
        for prompt, seeds in seeds_of.items():
            for start in range(0, len(seeds), longest):
                some = seeds[start : start + longest]
                by_count[len(some)].append((prompt, some))
        for count, items in by_count.items():
            while items:
                width = max(1, self.batch_size // count)  # it changes meanwhile: out of memory, or the search
                prompts, seeds = zip(*items[:width], strict=True)
                del items[:width]
                yield list(prompts), list(seeds)

    def _draw_batch(
        self, prompts: list[str], seeds: list[list[int]]
    ) -> dict[tuple[str, int], Picture | RenderFailure]:
        jobs = [(prompt, seed) for prompt, some in zip(prompts, seeds, strict=True) for seed in some]
        each = len(seeds[0])
        is_full = len(prompts) == max(1, self.batch_size // each)
        filled = jobs + [jobs[-1]] * (self.batch_size - len(jobs) if self._compiled else 0)
        arguments = {**self.render_kwargs, "prompt": prompts + [prompts[-1]] * (len(filled) - len(jobs))}
        if self.shares_prompts:
            arguments["num_images_per_prompt"] = each
        for name, value in arguments.items():
            if name.startswith("negative_prompt") and isinstance(value, str):  # some take it only as the prompts are
                arguments[name] = [value] * len(arguments["prompt"])
        if self._search:
            self._search.start()
        try:
            with torch.inference_mode():
                pictures = self.pipeline(
                    generator=[torch.Generator("cpu").manual_seed(seed) for _, seed in filled],
                    output_type=self.output_type,
                    **arguments,
                ).images
            made = self._checked(pictures[: len(jobs)])
        # Sana only warns of running out of memory in its decoder, and then lacks its `image`
        except (torch.OutOfMemoryError, UnboundLocalError) as error:
            out_of_memory = str(error)  # and not the error itself: its traceback holds the memory
        except RuntimeError as error:
            return dict.fromkeys(jobs, RenderFailure(f"{type(error).__name__}: {error}"))
        else:
            self.images_drawn += len(jobs)
            if self._search and is_full:
                self._search.stop(len(jobs))
                self.batch_size = self._search.size
                if self._search.done:
                    self._end_search()
            return dict(zip(jobs, made, strict=True))
        if len(filled) == 1:
            return {jobs[0]: RenderFailure(f"out of memory for a single picture: {out_of_memory}")}
        self.batch_size = min(self.batch_size, len(filled) // 2)
        logger.warning("out of memory with %d pictures at once; going on with %d", len(filled), self.batch_size)
        torch.cuda.empty_cache()
        if self._search:
            self._end_search()
        return self._draw_all(jobs)

    def _end_search(self) -> None:
        self._search = None
        logger.info("render_batch_size: auto is %d from here on", self.batch_size)
        if self._compile_models:
            self._compile()

    def _compile(self) -> None:
        """Compiles, and draws once: the first batch takes minutes, for which a job in a service has no time."""
        compile_models(self.pipeline)
        self._compiled = True
        drawn = self.images_drawn
        (picture,) = self.draw([("a picture", 0)])
        if self.images_drawn == drawn:
            raise RuntimeError(f"compile_generator: once compiled, it does not draw; leave it out. {picture.reason}")
        self.images_drawn = drawn

    def _checked(self, pictures: torch.Tensor | np.ndarray) -> list[Picture | RenderFailure]:
        """`pictures` in 0..1: a tensor, (count, 3, height, width), or an array, (count, height, width, 3)."""
        if isinstance(pictures, np.ndarray):
            pictures = torch.from_numpy(pictures).permute(0, 3, 1, 2)
        pictures = pictures.to(self.device, torch.float32)
        low, high = pictures.flatten(1).aminmax(dim=1)  # NaN if a pixel is
        made: list[Picture | RenderFailure] = []
        pixels = (pictures * 255).round().to(torch.uint8).contiguous()
        for one, spread in zip(pixels, (high - low).tolist(), strict=True):  # one transfer a batch
            if not math.isfinite(spread):
                made.append(RenderFailure("the picture has NaN or infinite pixels"))
            elif spread < 2 / 255:
                made.append(RenderFailure("the picture is blank: all pixels are alike"))
            else:
                made.append(Picture(one))
        return made
