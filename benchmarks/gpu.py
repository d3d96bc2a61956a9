"""How near is rendering to the GPU's limit, and where does a training step spend its time?

    python benchmarks/gpu.py --output gpu.json

Real architectures with random weights, nothing is downloaded: Stable Diffusion 3 medium with its three text encoders,
OpenCLIP ViT-B/32 and ViT-L/14, Qwen2-VL 2B and 7B with LoRA. On a CPU (or with --small) all of them are tiny: that
shows that the script runs, and nothing about a GPU.

The limit is the machine's own matrix product, measured here; "of the limit" is the TFLOP/s of a way to render, divided
by it. Then come the parts of an image; ways to render, compared with one prompt at a time and with the pipeline's
defaults; scorers; and GRPO steps of 8 prompts x 8 rewrites x 1 image, split into write, render, score and train. It
ends within nine minutes: a measurement for which no time is left is skipped, and named.
"""

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import open_clip
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers import StableDiffusion3Pipeline as Pipeline
from peft import LoraConfig
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    TrainerCallback,
)
from transformers.trainer_callback import PrinterCallback

from brushup.common import default_device
from brushup.config import PromptEnhancerConfig, RenderConfig
from brushup.console import quiet_libraries
from brushup.prompts.dataset import load_prompts
from brushup.render.renderer import Renderer
from brushup.render.worker import LocalWorker
from brushup.rewards.registry import RewardSpec
from brushup.training.trainer import PromptEnhancerTrainer


TINY_WORLD = Path(__file__).parent.parent / "data" / "tiny_world"

# config.json of Qwen/Qwen2-VL-2B-Instruct and -7B-Instruct
QWEN2_VL = {
    "2B": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "7B": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
}


@dataclass(frozen=True)
class Sizes:
    """The sizes of everything that is measured; the defaults are the real ones."""

    matrix: int = 8192
    dtype: torch.dtype = torch.bfloat16
    pixels: int = 512
    steps: int = 20
    default_pixels: int = 1024
    default_steps: int = 28
    batches: tuple[int, ...] = (4, 8, 16, 32)
    prompts: int = 8
    rewrites: int = 8
    tokens: int = 64  # of a completion
    scorers: dict[str, dict] = field(
        default_factory=lambda: {
            "ViT-B-32": {"model_name": "ViT-B-32", "pretrained": "openai"},
            "ViT-L-14": {"model_name": "ViT-L-14", "pretrained": "openai"},
        }
    )
    policies: tuple[str, ...] = ("2B", "7B")
    denoiser: dict[str, int] = field(
        default_factory=lambda: {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536}
    )
    vae: tuple[int, ...] = (128, 256, 512, 512)
    clip: tuple[tuple[int, int, int], ...] = ((768, 12, 12), (1280, 32, 20))  # width, layers, heads of both
    t5: tuple[int, int, int, int] = (4096, 10240, 24, 64)  # width, width of the feed-forward, layers, heads


SMALL = Sizes(
    matrix=512,
    dtype=torch.float32,
    pixels=64,
    steps=2,
    default_pixels=64,
    default_steps=3,
    batches=(1, 2),
    prompts=1,
    rewrites=4,
    tokens=4,
    scorers={"tiny": {"model_name": f"local-dir:{TINY_WORLD / 'scorer'}"}},
    policies=("tiny",),
    denoiser={"num_layers": 2, "num_attention_heads": 1, "caption_projection_dim": 64},
    vae=(8, 8, 8, 8),
    clip=((32, 2, 2), (32, 2, 2)),
    t5=(64, 64, 1, 2),
)


class Clock:
    """A stopwatch for the device, with the GB of memory that were allocated meanwhile."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        self.began = time.perf_counter()

    def measure(self, function: Callable[[], object]) -> dict[str, float]:
        """Return the seconds that `function()` takes, and the peak of GB allocated meanwhile (0 without CUDA)."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        function()
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "gigabytes": torch.cuda.max_memory_allocated() / 1e9 if self.cuda else 0.0}

    def is_past(self, seconds: float, name: str) -> bool:
        """Return whether the script has run for so many seconds; if so, say that the measurement `name` is skipped."""
        if past := time.perf_counter() - self.began > seconds:
            print(f"{name:>44}: left out, the time is over", flush=True)
        return past


def build_pipeline(sizes: Sizes, device: str) -> Pipeline:
    """Build Stable Diffusion 3 medium from the configuration on its Hub page, with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        text_encoders = [
            clip_text_encoder(*shape, act) for shape, act in zip(sizes.clip, ("quick_gelu", "gelu"), strict=True)
        ]
        width, inner, layers, heads = sizes.t5
        t5_config = {"d_model": width, "d_kv": 64, "d_ff": inner, "num_layers": layers, "num_heads": heads}
        t5 = T5EncoderModel(T5Config(**t5_config, feed_forward_proj="gated-gelu", vocab_size=32128))
        transformer = SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            attention_head_dim=64,
            joint_attention_dim=width,
            pooled_projection_dim=sum(shape[0] for shape in sizes.clip),
            out_channels=16,
            pos_embed_max_size=192,
            **sizes.denoiser,
        )
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * len(sizes.vae),
            up_block_types=["UpDecoderBlock2D"] * len(sizes.vae),
            block_out_channels=sizes.vae,
            layers_per_block=2,
            latent_channels=16,
            norm_num_groups=min(32, sizes.vae[0]),
            sample_size=1024,
            scaling_factor=1.5305,
            shift_factor=0.0609,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    tokenizer = CLIPTokenizer.from_pretrained(TINY_WORLD / "generator" / "tokenizer", model_max_length=77)
    pieces = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")]
    pieces += [(piece, -2.0) for piece in "▁abcdefghijklmnopqrstuvwxyz"]
    return Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=text_encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=text_encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=t5,
        tokenizer_3=T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512),
    ).to(device, sizes.dtype)


def clip_text_encoder(width: int, layers: int, heads: int, act: str) -> CLIPTextModelWithProjection:
    """Build a CLIP text encoder with random weights."""
    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=act,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return CLIPTextModelWithProjection(config)


def matrix_limit(clock: Clock, sizes: Sizes, device: str) -> float:
    """Return the TFLOP/s of a large matrix product in the generator's dtype: the best of five rounds of ten."""
    a, b = (torch.randn(sizes.matrix, sizes.matrix, device=device, dtype=sizes.dtype) for _ in range(2))

    def multiply_ten_times() -> None:
        for _ in range(10):
            a @ b

    multiply_ten_times()
    best = min(clock.measure(multiply_ten_times)["seconds"] for _ in range(5))
    return 10 * 2 * sizes.matrix**3 / best / 1e12


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
            f"{name:>44}: {1e3 * times * seconds:9.2f} ms and {times * tflop:9.4f} TFLOP an image, "
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
    return parts


class Ways:
    """The ways to render, each measured in images a second; the first two are what the others are compared with."""

    def __init__(self, clock: Clock, sizes: Sizes, pipeline: Pipeline, limit: float, parts: dict):
        self.clock, self.sizes, self.pipeline, self.limit, self.parts = clock, sizes, pipeline, limit, parts
        self.rows: dict[str, dict[str, float | None]] = {}
        self.jobs = [(f"a photo of a red circle, number {number}", number) for number in range(1000)]

    def measure_all(self, until: float) -> int:
        """Measure every way that begins before `until`, in seconds since the start; return the fastest batch size."""
        sizes, pipeline = self.sizes, self.pipeline
        size = {"height": sizes.default_pixels, "width": sizes.default_pixels}
        with torch.no_grad():  # as in a first script
            pipeline.to(torch.float32)
            pipeline(self.jobs[0][0], num_inference_steps=1, **size)
            by_default = self.clock.measure(
                lambda: pipeline(self.jobs[0][0], num_inference_steps=sizes.default_steps, **size)
            )
        # The matrix product in float32 is another limit, so this row has no share of it
        self.show(f"default: float32, {sizes.default_pixels} px, {sizes.default_steps} steps", 1, by_default, None)
        pipeline.to(sizes.dtype)
        dtype = str(sizes.dtype).split(".")[1]
        self.way(f"one at a time, {dtype}, {sizes.pixels} px, {sizes.steps} steps", 1, until)
        for batch in sizes.batches:
            self.way(f"batches of {batch}", batch, until)
        rates = {
            n: self.rows[f"batches of {n}"]["images_per_second"]
            for n in sizes.batches
            if f"batches of {n}" in self.rows
        }
        best = max(rates, key=rates.get, default=sizes.batches[-2])
        without = {part: pipeline.components[part] for part in ("text_encoder_3", "tokenizer_3")}
        pipeline.register_modules(**dict.fromkeys(without))
        device = pipeline.device
        if device.type == "cuda":
            without["text_encoder_3"].to("cpu")
        self.way(f"batches of {best}, without T5", best, until, t5=False)
        without["text_encoder_3"].to(device)
        pipeline.register_modules(**without)
        self.way(f"batches of {best}, without guidance", best, until, guidance=1.0)
        self.way(f"batches of {best}, half the steps", best, until, steps=sizes.steps // 2)
        self.way(f"batches of {best}, 4 steps, no guidance (distilled)", best, until, steps=4, guidance=1.0)
        if device.type != "cpu":  # a CPU's kernels take minutes to build
            self.way(f"batches of {best}, compile_generator", best, until, compile_generator=True)
            for module in (pipeline.transformer, pipeline.vae.decoder):
                module._compiled_call_impl = None
        return best

    def way(
        self, name: str, batch: int, until: float, steps: int = 0, guidance: float = 5.0, t5: bool = True, **render
    ):
        """Render a batch with one denoising step to warm up, then measure with `steps` of them."""
        if self.clock.is_past(until, name):
            return
        steps = steps or self.sizes.steps
        settings = {"guidance": guidance, "render_batch_size": batch, **render}
        count = max(batch, min(4, self.sizes.batches[-1]) if batch == 1 else self.sizes.batches[-2])
        try:
            if not render:  # compiling renders once by itself
                as_renderer(self.sizes, self.pipeline, 1, **settings).draw(self.jobs[:batch])
            renderer = as_renderer(self.sizes, self.pipeline, steps, **settings)
            measured = self.clock.measure(lambda: renderer.draw(self.jobs[:count]))
        except torch.OutOfMemoryError:
            print(f"{name:>44}: out of memory", flush=True)
            return
        encoders = "text encoders, both prompts" if t5 else "text encoders without T5"
        denoiser = steps * self.parts["denoiser, all steps, with guidance"]["tflop"]
        share = 1.0 if guidance > 1 else 0.5  # guidance runs both models for the empty prompt too
        tflop = share * (self.parts[encoders]["tflop"] + denoiser) + self.parts["decoder"]["tflop"]
        self.show(name, count, measured, tflop)

    def show(self, name: str, count: int, measured: dict[str, float], tflop: float | None) -> None:
        """Add the row of a way that rendered `count` images of `tflop` TFLOP each, and print it."""
        rate = count / measured["seconds"]
        row = self.rows[name] = {"images_per_second": rate, "gigabytes": measured["gigabytes"]}
        first = [other["images_per_second"] for other in self.rows.values()][:2]
        row["over_default"] = rate / first[0]
        row["over_one_at_a_time"] = rate / first[-1]
        row["of_limit"] = tflop and tflop * rate / self.limit
        share = f"{row['of_limit']:.2f} of the limit" if tflop else " " * 17
        print(
            f"{name:>44}: {rate:8.3f} images/s, {row['over_default']:7.2f} x default, "
            f"{row['over_one_at_a_time']:6.2f} x one at a time, {share}, {row['gigabytes']:6.2f} GB",
            flush=True,
        )


def as_renderer(sizes: Sizes, pipeline: Pipeline, steps: int, guidance: float = 5.0, **settings) -> Renderer:
    """Return Brushup's renderer around the pipeline."""
    size = {"height": sizes.pixels, "width": sizes.pixels}
    config = RenderConfig(
        "random weights",
        render_kwargs={"num_inference_steps": steps, "guidance_scale": guidance, **size},
        render_device=pipeline.device.type,
        gpu_memory_fraction=1.0,
        **settings,
    )
    with patch.object(DiffusionPipeline, "from_pretrained", lambda *_, **__: pipeline):
        return Renderer(config)


def load_scorer(settings: dict, device: str) -> Callable:
    """Return the `clip` reward, with random weights unless its model is in a folder here."""

    def create(model_name, pretrained, **settings):
        model, _, preprocess = open_clip.create_model_and_transforms(model_name, pretrained=None, **settings)
        return model, preprocess

    spec = RewardSpec("clip", kwargs=settings)
    if settings["model_name"].startswith("local-dir:"):
        return spec.load(device)
    with patch.object(open_clip, "create_model_from_pretrained", create):
        return spec.load(device)


def scorers(clock: Clock, sizes: Sizes, device: str) -> dict[str, dict[str, float]]:
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
        print(f"{name:>44}: {found[name]['images_per_second']:8.1f} images/s, {found[name]['gigabytes']:6.2f} GB")
    return found


class LastStep(TrainerCallback):
    """Measures the last training step; the one before warms up.

    Attributes:
        seconds: of the whole step ("step"), and by activity: "write", "wait" (for images), "render", "score".
    """

    def __init__(self, trainer: PromptEnhancerTrainer):
        self.trainer = trainer
        self.seconds: dict[str, float] = {}
        self.images = 0

    def so_far(self) -> dict[str, float]:
        """Return the seconds since the start of the run, and now."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return {"step": time.perf_counter(), **self.trainer.times.seconds, **self.trainer.worker.seconds}

    def on_step_begin(self, args, state, control, **kwargs):
        self.before, self.images_before = self.so_far(), self.trainer.worker.images_drawn

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds = {name: value - self.before[name] for name, value in self.so_far().items()}
        self.images = self.trainer.worker.images_drawn - self.images_before


def random_policy(size: str, dtype: torch.dtype, device: str) -> Qwen2VLForConditionalGeneration:
    """Build the Qwen2-VL with so many parameters ("2B", "7B", "tiny") and the tiny world's special tokens."""
    config = Qwen2VLConfig.from_pretrained(TINY_WORLD / "policy")
    if size != "tiny":
        text = {name: value for name, value in QWEN2_VL[size].items() if name != "tie_word_embeddings"}
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
        vision = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4, "patch_size": 14}
        config = Qwen2VLConfig(
            text_config={**text, "num_hidden_layers": 28, "rope_parameters": rope},
            vision_config={**vision, "hidden_size": text["hidden_size"]},
            tie_word_embeddings=QWEN2_VL[size]["tie_word_embeddings"],
            **{key: number for key, number in config.to_dict().items() if key.endswith("_token_id")},
        )
    with torch.device(device):
        return Qwen2VLForConditionalGeneration._from_config(config, dtype=dtype)


def grpo_step(
    clock: Clock, sizes: Sizes, policy: str, pipeline: Pipeline, batch: int, device: str
) -> dict[str, float]:
    """Measure the seconds of a step of `PromptEnhancerTrainer`, and of its parts; every completion is rendered."""
    gc.collect()  # the policy that was measured before
    renderer = as_renderer(sizes, pipeline, sizes.steps, render_batch_size=batch)
    worker = LocalWorker(renderer, {"clip": load_scorer(list(sizes.scorers.values())[-1], device)})
    numbers = iter(range(10**9))
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("brushup.training.trainer.parse_answer", lambda *_, **__: f"a red circle, number {next(numbers)}"),
    ):
        args = PromptEnhancerConfig(
            output_dir=folder,
            per_device_train_batch_size=sizes.rewrites,
            gradient_accumulation_steps=sizes.prompts,
            num_generations=sizes.rewrites,
            max_completion_length=sizes.tokens,
            max_steps=2,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            bf16=device == "cuda",
            use_cpu=device == "cpu",
            seed=0,
        )
        trainer = PromptEnhancerTrainer(
            random_policy(policy, sizes.dtype, device),
            worker,
            [RewardSpec("clip")],
            args,
            train_dataset=load_prompts(str(TINY_WORLD / "train.jsonl")),
            processing_class=AutoProcessor.from_pretrained(TINY_WORLD / "policy"),
            peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM"),
        )
        trainer.remove_callback(PrinterCallback)
        step = LastStep(trainer)
        trainer.add_callback(step)
        memory = clock.measure(trainer.train)["gigabytes"]
    seconds = step.seconds
    seconds["train"] = seconds["step"] - seconds["write"] - seconds["wait"]
    parts = ", ".join(f"{name} {value:.2f} s ({value / seconds['step']:.0%})" for name, value in seconds.items())
    print(f"{'Qwen2-VL ' + policy:>44}: {parts}; {step.images} images, {memory:.1f} GB", flush=True)
    return seconds | {"images": step.images, "gigabytes": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny models, as on a CPU")
    parser.add_argument("--output", help="a JSON file")
    arguments = parser.parse_args()
    quiet_libraries()
    device = default_device()
    small = arguments.small or device != "cuda"
    sizes = SMALL if small else Sizes()
    clock = Clock(device)
    name = torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    print(f"{name}; {'tiny models: the figures say nothing about a GPU' if small else 'models of their real size'}")

    limit = matrix_limit(clock, sizes, device)
    results: dict = {"device": name, "small": small, "matrix_tflops": limit}
    print(f"\nMatrix product of {sizes.matrix}, {sizes.dtype}: {limit:.3g} TFLOP/s: the limit\n")
    pipeline = build_pipeline(sizes, device)
    pipeline.set_progress_bar_config(disable=True)
    print(f"Parts of an image of {sizes.pixels} px, {sizes.steps} steps, in a batch of {sizes.batches[-2]}")
    parts = results["parts"] = parts_of_an_image(clock, sizes, pipeline, limit)
    print("\nWays to render")
    ways = Ways(clock, sizes, pipeline, limit, parts)
    batch = results["fastest_batch"] = ways.measure_all(until=270)
    results["ways"] = ways.rows
    print("\nScorers")
    results["scorers"] = scorers(clock, sizes, device)
    count = sizes.prompts * sizes.rewrites
    print(f"\nA GRPO step: {count} completions of {sizes.tokens} tokens, {count} images")
    results["steps"] = {
        policy: grpo_step(clock, sizes, policy, pipeline, batch, device)
        for policy in sizes.policies
        if not clock.is_past(420, f"Qwen2-VL {policy}")
    }
    results["seconds"] = time.perf_counter() - clock.began
    print(f"\n{results['seconds']:.0f} s")
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
