"""The images of gpu.py: parts of an image, ways to render, scorers."""

import copy
import importlib.util
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from diffusers.hooks import (
    FasterCacheConfig,
    HookRegistry,
    PyramidAttentionBroadcastConfig,
    apply_faster_cache,
    apply_pyramid_attention_broadcast,
)
from diffusers.hooks.hooks import CacheContext, _set_cache_context
from diffusers.hooks.mag_cache import MagCacheConfig, apply_mag_cache
from diffusers.hooks.taylorseer_cache import TaylorSeerCacheConfig, apply_taylorseer_cache
from gpu_models import Clock, Pipeline, Row, Sizes, as_renderer, load_scorer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from brushup.render import renderer as renderer_module
from brushup.render.renderer import RenderFailure


GUIDED = 0.4  # share of the steps with guidance, where only the first ones have it


def parts_of_an_image(clock: Clock, sizes: Sizes, pipeline: Pipeline, limit: float) -> dict[str, dict[str, float]]:
    """Measure each part of rendering: seconds, TFLOP and share of the limit per image; it runs `times` per image."""
    batch = sizes.batches[-2]
    device, dtype, vae = pipeline.device, pipeline.dtype, pipeline.vae
    prompts = [f"a red circle, number {number}" for number in range(batch)]
    side = sizes.pixels // 8
    parts: dict[str, dict[str, float]] = {}

    def encode() -> tuple[torch.Tensor, ...]:
        return pipeline.encode_prompt(prompts, None, None, device=device)

    def denoise() -> None:
        pipeline.transformer(
            hidden_states=noise, timestep=when, encoder_hidden_states=words, pooled_projections=pooled
        )

    def decode() -> None:
        vae.decode(noise[:batch].to(vae.dtype))

    def measure(name: str, function: Callable[[], object], times: int) -> None:
        with FlopCounterMode(display=False) as counter:
            function()
        measured = clock.measure(function)
        tflop, seconds = counter.get_total_flops() / batch / 1e12, measured["seconds"] / batch
        share = tflop / seconds / limit
        parts[name] = {"seconds": seconds, "tflop": tflop, "of_limit": share, "times": times}
        parts[name]["gigabytes"] = measured["gigabytes"]
        print(
            f"{name:>56}: {1e3 * times * seconds:9.2f} ms and {times * tflop:9.4f} TFLOP an image, "
            f"{share:.2f} of the limit, {measured['gigabytes']:6.2f} GB",
            flush=True,
        )

    with torch.no_grad():
        words, empty, pooled, pooled_empty = encode()
        words, pooled = torch.cat([empty, words]), torch.cat([pooled_empty, pooled])
        noise = torch.randn(2 * batch, 16, side, side, device=device, dtype=dtype)
        when = torch.full((2 * batch,), 500.0, device=device, dtype=dtype)
        measure("text encoders, both prompts", encode, 1)
        t5, pipeline.text_encoder_3 = pipeline.text_encoder_3, None
        measure("text encoders without T5", encode, 1)
        pipeline.text_encoder_3 = t5
        measure("denoiser, all steps, with guidance", denoise, sizes.steps)
        measure("decoder", decode, 1)
        with channels_last(pipeline):
            measure("decoder, channels_last", decode, 1)
    return parts


def scorers(clock: Clock, sizes: Sizes, device: str) -> dict[str, Row]:
    """Measure the images a second of each scorer, for the images of a step."""
    count = sizes.prompts * sizes.rewrites
    shape = (3, sizes.pixels, sizes.pixels)
    prompts, found = ["a red circle"] * count, {}
    for name, settings in sizes.scorers.items():
        reward = load_scorer(settings, device)
        images = [torch.randint(256, shape, dtype=torch.uint8, device=device) for _ in range(count)]
        reward(images, prompts, prompts)
        images = list(images)  # another list: the backbone keeps the features of the last one
        measured = clock.measure(lambda reward=reward, images=images: reward(images, prompts, prompts))
        found[name] = {"images_per_second": count / measured["seconds"], "gigabytes": measured["gigabytes"]}
        print(f"{name:>56}: {found[name]['images_per_second']:8.1f} images/s, {found[name]['gigabytes']:6.2f} GB")
    return found


# ------------------------------------------------------------------------- what is changed for the time of a block


@contextmanager
def without_t5(pipeline: Pipeline) -> Iterator[None]:
    """Take T5 out of the pipeline and off the GPU."""
    device = pipeline.device
    parts = {part: pipeline.components[part] for part in ("text_encoder_3", "tokenizer_3")}
    pipeline.register_modules(**dict.fromkeys(parts))
    parts["text_encoder_3"].to("cpu")
    try:
        yield
    finally:
        parts["text_encoder_3"].to(device)
        pipeline.register_modules(**parts)


@contextmanager
def vae_slicing(pipeline: Pipeline) -> Iterator[None]:
    """Decode one image at a time."""
    pipeline.vae.enable_slicing()
    try:
        yield
    finally:
        pipeline.vae.disable_slicing()


@contextmanager
def channels_last(pipeline: Pipeline) -> Iterator[None]:
    """Lay the decoder's weights out as (height, width, channels)."""
    pipeline.vae.decoder.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        pipeline.vae.decoder.to(memory_format=torch.contiguous_format)


@contextmanager
def attention(pipeline: Pipeline, backend: SDPBackend) -> Iterator[None]:
    """Let the denoiser use this attention kernel of PyTorch, and no other.

    diffusers' `set_attention_backend` changes nothing here: the attention of Stable Diffusion 3 in diffusers 0.42
    (`JointAttnProcessor2_0`) calls PyTorch's `scaled_dot_product_attention` itself.
    """
    forward = pipeline.transformer.forward

    def with_backend(*args, **kwargs):
        with sdpa_kernel(backend):
            return forward(*args, **kwargs)

    with patch.object(pipeline.transformer, "forward", with_backend):
        yield


@contextmanager
def flash_attention_3(pipeline: Pipeline) -> Iterator[None]:
    """Let the denoiser use the package FlashAttention 3 instead of PyTorch's own FlashAttention."""
    torch.nn.attention.activate_flash_attention_impl("FA3")  # not in each torch
    try:
        with attention(pipeline, SDPBackend.FLASH_ATTENTION):
            yield
    finally:
        torch.nn.attention.restore_flash_attention_impl()


@contextmanager
def before_each_call(act: Callable[[], None], **render_kwargs) -> Iterator[None]:
    """Act before each call of the pipeline, and add arguments to it."""
    call = renderer_module.call_pipeline

    def changed(pipeline, kwargs, *rest):
        act()
        return call(pipeline, kwargs | render_kwargs, *rest)

    with patch.object(renderer_module, "call_pipeline", changed):
        yield


def guidance_on_first_steps(steps: int) -> Iterator[None]:
    """Guide the first steps only; the rest take half the work."""
    names = ["prompt_embeds", "pooled_prompt_embeds"]

    def end_guidance(pipeline: Pipeline, step: int, _, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if step + 1 != guided_steps(steps):
            return tensors
        pipeline._guidance_scale = 1.0
        return {name: tensors[name].chunk(2)[1] for name in names}  # SD3CFGCutoffCallback keeps one prompt of a batch

    return before_each_call(lambda: None, callback_on_step_end=end_guidance, callback_on_step_end_tensor_inputs=names)


def guided_steps(steps: int) -> int:
    """Return how many of the steps have guidance, where only the first ones have it."""
    return max(1, round(GUIDED * steps))


@contextmanager
def step_cache(pipeline: Pipeline, name: str, steps: int) -> Iterator[None]:
    """Let the denoiser reuse what it computed in earlier steps, by a cache of diffusers.

    SD3's transformer has no `enable_cache`, so the hooks are applied by hand. All of these skip by the number of the
    step, so that an image does not depend on the others in its batch. FirstBlockCache, which decides by the mean over
    the batch, fails with SD3, whose last block returns no text; SeaCache has to be told the step by the pipeline.
    """
    transformer = pipeline.transformer
    now = {"timestep": 1000.0}
    look = transformer.register_forward_pre_hook(
        lambda _, args, kwargs: now.update(timestep=float(kwargs["timestep"][0])), with_kwargs=True
    )

    def reset() -> None:
        registry = HookRegistry.check_if_exists_or_initialize(transformer)
        registry.reset_stateful_hooks(recurse=True)
        registry.invalidate_child_registries_cache()
        _set_cache_context(transformer, CacheContext("guided"))

    attention_of = {"spatial_attention_block_skip_range": 2, "current_timestep_callback": lambda: now["timestep"]}
    try:
        if name == "PyramidAttentionBroadcast":
            apply_pyramid_attention_broadcast(transformer, PyramidAttentionBroadcastConfig(**attention_of))
        elif name == "FasterCache":
            # Of attention only: to skip the unguided half of a batch it would have to split SD3's pooled_projections
            when = {"spatial_attention_timestep_skip_range": (-1, 681), "attention_weight_callback": lambda _: 0.3}
            apply_faster_cache(transformer, FasterCacheConfig(**attention_of, **when, is_guidance_distilled=True))
        elif name == "TaylorSeer":
            apply_taylorseer_cache(transformer, TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=3))
        else:  # its ratios have to be measured with real weights; with ones it skips three of four steps
            apply_mag_cache(transformer, MagCacheConfig(num_inference_steps=steps, mag_ratios=[1.0] * steps))
        with before_each_call(reset):
            yield
    finally:
        look.remove()
        for module in transformer.modules():
            if registry := getattr(module, "_diffusers_hook", None):
                for hook in list(registry.hooks):
                    registry.remove_hook(hook, recurse=False)


@contextmanager
def compiled(pipeline: Pipeline, **settings) -> Iterator[None]:
    """Compile denoiser and decoder as `compile_generator` does, with these settings of torch.compile besides."""

    def compile_models(_) -> None:
        for module in (pipeline.transformer, pipeline.vae.decoder):
            module.compile(dynamic=False, **settings)

    if pipeline.device.type == "cpu":
        raise RuntimeError("a CPU's kernels take minutes to build")
    try:
        with patch.object(renderer_module, "compile_models", compile_models):
            yield
    finally:
        for module in (pipeline.transformer, pipeline.vae.decoder):
            module._compiled_call_impl = None
        torch.compiler.reset()


@contextmanager
def float8_weights(pipeline: Pipeline) -> Iterator[None]:
    """Compute the denoiser's linear layers in float8, weights and activations, with torchao."""
    if not importlib.util.find_spec("torchao"):
        raise RuntimeError("torchao is not installed")
    if pipeline.device.type != "cuda" or torch.cuda.get_device_capability() < (8, 9):
        raise RuntimeError("the device has no float8 arithmetic")
    from torchao.quantization import Float8DynamicActivationFloat8WeightConfig, quantize_

    original, quantized = pipeline.transformer, copy.deepcopy(pipeline.transformer)
    quantize_(quantized, Float8DynamicActivationFloat8WeightConfig(set_inductor_config=False))
    pipeline.register_modules(transformer=quantized)
    try:
        yield
    finally:
        pipeline.register_modules(transformer=original)


# ------------------------------------------------------------------------------------------------- ways to render


class Ways:
    """The ways to render, each measured in images a second; the first two are what the others are compared with.

    Eight prompts in a row have one seed, as the rewrites of a group have. `differs` is the mean difference of a pixel,
    of 255, from the same images of the plain batches, and `ranks` the rank correlation of their rewards within groups.
    With random weights both say how large a change is beside rounding (see "batches of ..."), no more: a prompt
    changes little in such an image, and a reward knows nothing of it.

    Args:
        clock: the stopwatch.
        sizes: the sizes.
        pipeline: the pipeline, in float32 or in the dtype of `sizes`.
        limit: TFLOP/s that the machine reaches.
        parts: what `parts_of_an_image` returned.

    Attributes:
        rows: by name; {"left_out": reason} where there is no measurement.
        best: the batch size with the most images a second.
    """

    def __init__(self, clock: Clock, sizes: Sizes, pipeline: Pipeline, limit: float, parts: dict):
        self.clock, self.sizes, self.pipeline, self.limit, self.parts = clock, sizes, pipeline, limit, parts
        self.rows: dict[str, Row] = {}
        group = sizes.rewrites
        self.jobs = [(f"a photo of a red circle, number {number}", number // group) for number in range(1000)]
        self.reward = load_scorer(next(iter(sizes.scorers.values())), pipeline.device.type)
        self.plain: dict[str, list[torch.Tensor]] = {}  # images by batch size
        self.best = 0  # not known yet

    def measure_plain(self, until: float) -> None:
        """Measure the ways that nothing is compiled for."""
        sizes, pipeline = self.sizes, self.pipeline
        name = f"default: float32, {sizes.default_pixels} px, {sizes.default_steps} steps"
        self.rows[name] = self.clock.attempt(name, lambda: self.by_default(name), until)
        pipeline.to(sizes.dtype)
        dtype = str(sizes.dtype).split(".")[1]
        self.way(f"one at a time, {dtype}, {sizes.pixels} px, {sizes.steps} steps", until, batch=1)
        for batch in sizes.batches:
            self.way(f"batches of {batch}", until, batch=batch)
        self.best = max(sizes.batches, key=lambda batch: self.rows[f"batches of {batch}"].get("images_per_second", 0))
        self.compare()
        self.way("no T5", until, lambda: without_t5(pipeline), t5=False)
        self.way("no guidance", until, guidance=1.0)
        self.way("half the steps", until, steps=sizes.steps // 2)
        self.way("4 steps, no guidance (distilled)", until, steps=4, guidance=1.0)
        self.way("vae_slicing", until, lambda: vae_slicing(pipeline))
        self.way("channels_last decoder", until, lambda: channels_last(pipeline))
        self.way("cuDNN attention", until, lambda: attention(pipeline, SDPBackend.CUDNN_ATTENTION))
        self.way("FlashAttention", until, lambda: attention(pipeline, SDPBackend.FLASH_ATTENTION))
        self.way("FlashAttention 3", until, lambda: flash_attention_3(pipeline))
        guided = guided_steps(sizes.steps)
        share = (1 + guided / sizes.steps) / 2
        name = f"guidance on the first {guided} steps"
        self.way(name, until, lambda: guidance_on_first_steps(sizes.steps), share=share)
        for cache in ("PyramidAttentionBroadcast", "FasterCache", "TaylorSeer", "MagCache"):
            self.way(
                cache,
                until,
                lambda cache=cache: step_cache(pipeline, cache, sizes.steps),
                share=None,
                warm_up=sizes.steps,
            )

    def measure_compiled(self, until: float) -> None:
        """Measure the ways for which kernels are built, which takes most of their time."""
        pipeline = self.pipeline

        @contextmanager
        def all_of_it() -> Iterator[None]:
            with attention(pipeline, SDPBackend.CUDNN_ATTENTION), channels_last(pipeline), compiled(pipeline):
                yield

        @contextmanager
        def float8() -> Iterator[None]:
            with float8_weights(pipeline), compiled(pipeline):
                yield

        settings = {"compile_generator": True}
        self.way("compile_generator", until, lambda: compiled(pipeline), **settings)
        self.way("compile_generator, cuDNN, channels_last", until, all_of_it, **settings)
        self.way("compile_generator, float8 weights", until, float8, **settings)

    def measure_tuned(self, until: float) -> None:
        """Measure the way whose kernels are chosen by trying them out; it may take more time than there is."""
        mode = "max-autotune-no-cudagraphs"  # graphs would keep the memory of each batch size
        name = "compile_generator, max-autotune"
        self.way(name, until, lambda: compiled(self.pipeline, mode=mode), compile_generator=True)

    def by_default(self, name: str) -> Row:
        """Render one image as a first script does."""
        sizes, pipeline = self.sizes, self.pipeline
        size = {"height": sizes.default_pixels, "width": sizes.default_pixels}
        with torch.no_grad():
            pipeline.to(torch.float32)
            pipeline(self.jobs[0][0], num_inference_steps=1, **size)
            measured = self.clock.measure(
                lambda: pipeline(self.jobs[0][0], num_inference_steps=sizes.default_steps, **size)
            )
        return self.row(name, [], measured, None)  # float32 has another limit

    def way(self, name: str, until: float, change: Callable = nullcontext, batch: int = 0, **settings) -> None:
        """Measure a way to render, by default in batches of the best size, while the pipeline is changed."""
        if not batch:
            batch, name = self.best, f"batches of {self.best}, {name}"

        def measure() -> Row:
            with change():
                return self.render(name, batch, **settings)

        self.rows[name] = self.clock.attempt(name, measure, until)

    def render(
        self,
        name: str,
        batch: int,
        steps: int = 0,
        guidance: float = 5.0,
        t5: bool = True,
        share: float | None = 1.0,
        warm_up: int = 1,
        **settings,
    ) -> Row:
        """Render a batch with few steps to warm up, then measure it with all of them.

        Args:
            name: of the row.
            batch: images at once.
            steps: denoising steps; default those of `sizes`.
            guidance: 1.0 is none.
            t5: whether T5 is there.
            share: of the denoiser's work that is done; None: not known.
            warm_up: denoising steps of the first batch.
            settings: of `RenderConfig`.
        """
        steps = steps or self.sizes.steps
        settings = {"guidance": guidance, "render_batch_size": batch, **settings}
        count = max(batch, min(4, self.sizes.batches[-1]) if batch == 1 else self.sizes.batches[-2])
        if "compile_generator" not in settings:  # that renders once by itself
            as_renderer(self.sizes, self.pipeline, warm_up, **settings).draw(self.jobs[:batch])
        begin = time.perf_counter()
        renderer = as_renderer(self.sizes, self.pipeline, steps, **settings)
        start = time.perf_counter() - begin
        rendered: list = []
        measured = self.clock.measure(lambda: rendered.extend(renderer.draw(self.jobs[:count])))
        if renderer.batch_size < batch:
            raise torch.OutOfMemoryError(f"out of memory: it went on with batches of {renderer.batch_size}")
        if failures := [item.reason for item in rendered if isinstance(item, RenderFailure)]:
            raise RuntimeError(failures[0].removeprefix("RuntimeError: "))
        images = [item.pixels for item in rendered]
        if name in [f"batches of {size}" for size in self.sizes.batches]:
            self.plain[name] = images
        tflop = None
        if share is not None:
            encoders = self.parts["text encoders, both prompts" if t5 else "text encoders without T5"]["tflop"]
            denoiser = steps * self.parts["denoiser, all steps, with guidance"]["tflop"]
            guided = 1.0 if guidance > 1 else 0.5  # guidance runs both models for the empty prompt too
            tflop = guided * (encoders + share * denoiser) + self.parts["decoder"]["tflop"]
        row = self.row(name, images, measured, tflop)
        if "compile_generator" in settings:
            row["start_seconds"] = start
            print(f"{'its start':>56}: {start:8.1f} s", flush=True)
        return row

    def row(self, name: str, images: list[torch.Tensor], measured: dict[str, float], tflop: float | None) -> Row:
        """Return, and print, the row of a way that rendered these images, of `tflop` TFLOP each."""
        rate = max(1, len(images)) / measured["seconds"]
        first = [*(row.get("images_per_second", rate) for row in self.rows.values()), rate][:2]
        row: Row = {"images_per_second": rate, "gigabytes": measured["gigabytes"]}
        row |= {"over_default": rate / first[0], "over_one_at_a_time": rate / first[-1]}
        row["of_limit"] = tflop and tflop * rate / self.limit
        row |= self.likeness(images)
        share = f"{row['of_limit']:.2f} of the limit" if tflop else " " * 17
        alike = f", differs {row['differs']:.1f}, ranks {row['ranks']:.2f}" if "differs" in row else ""
        print(
            f"{name:>56}: {rate:8.3f} images/s, {row['over_default']:7.2f} x default, "
            f"{row['over_one_at_a_time']:6.2f} x one at a time, {share}, {row['gigabytes']:6.2f} GB{alike}",
            flush=True,
        )
        return row

    def compare(self) -> None:
        """Compare the batches of other sizes, which were measured before the best size was known, with those of it."""
        for name, images in self.plain.items():
            if alike := self.likeness(images):
                self.rows[name] |= alike
                print(f"{name:>56}: differs {alike['differs']:.1f}, ranks {alike['ranks']:.2f}", flush=True)

    def likeness(self, images: list[torch.Tensor]) -> dict[str, float]:
        """Return how much images differ from the same ones in the plain batches; empty where nothing is compared."""
        plain = self.plain.get(f"batches of {self.best}")
        if not plain or not images or plain is images:
            return {}
        count = min(len(plain), len(images))
        pairs = zip(plain[:count], images[:count], strict=True)
        differs = sum(float((a.float() - b.float()).abs().mean()) for a, b in pairs) / count
        prompts = ["a photo of a red circle"] * count
        rewards = [torch.tensor(self.reward(batch[:count], prompts, prompts)) for batch in (plain, images)]
        group = min(self.sizes.rewrites, count)
        groups = zip(*(values[: count // group * group].view(-1, group) for values in rewards), strict=True)
        correlations = [rank_correlation(*values) for values in groups]
        return {"differs": differs, "ranks": sum(correlations) / len(correlations)}


def rank_correlation(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return Spearman's rank correlation of two tensors of equal length; 1 if there is but one number."""
    if len(first) < 2:
        return 1.0
    ranks = torch.stack([values.argsort().argsort().float() for values in (first, second)])
    return float(torch.corrcoef(ranks)[0, 1])
