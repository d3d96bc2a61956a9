"""How near is drawing to the GPU's limit, and where does a training step spend its time?

    python benchmarks/gpu.py --output gpu.json

Real architectures with random weights, nothing is downloaded: Stable Diffusion 3 medium with its three text encoders,
OpenCLIP ViT-B/32 and ViT-L/14, Qwen2-VL 2B and 7B with LoRA. On a CPU (or with --small) all of them are tiny: that
shows that the script runs, and nothing about a GPU.

The limit is the machine's own matrix product, measured here; a share of it is the TFLOP/s of a way to draw over that.
Then: the parts of a picture; ways to draw, as ratios to one prompt at a time and to the pipeline as it is by default;
scorers; whole GRPO steps of 8 prompts x 8 rewrites x 1 picture, split into generate, draw, score and train. Under nine
minutes: what would not end in time is left out, and named.
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

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers import StableDiffusion3Pipeline as Pipeline
from peft import LoraConfig
from random_rewards import TINY_WORLD, load_random, qwen2_vl_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoProcessor,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    TrainerCallback,
)
from transformers.trainer_callback import PrinterCallback

from brushup.config import PromptEnhancerConfig
from brushup.console import quiet_libraries
from brushup.data import load_prompts
from brushup.render import Renderer, default_device
from brushup.rewards import load_reward
from brushup.trainer import PromptEnhancerTrainer
from brushup.worker import LocalWorker


@dataclass(frozen=True)
class Sizes:
    """What is measured; the values are the real ones."""

    matrix: int = 8192
    dtype: torch.dtype = torch.bfloat16
    pixels: int = 512
    steps: int = 20
    default_pixels: int = 1024
    default_steps: int = 28
    batches: tuple[int, ...] = (4, 8, 16, 32)
    searched: int = 192  # pictures drawn with render_batch_size: auto
    prompts: int = 8
    rewrites: int = 8
    tokens: int = 64  # of an answer
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
    searched=24,
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
    """Seconds and GB on the device; `until` the given seconds since the start something may begin."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        self.began = time.perf_counter()

    def measure(self, function: Callable[[], object]) -> dict[str, float]:
        """Seconds of `function()`, and GB allocated meanwhile (0 where there is no CUDA)."""
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        begin = time.perf_counter()
        function()
        if self.cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
        return {"seconds": seconds, "gigabytes": torch.cuda.max_memory_allocated() / 1e9 if self.cuda else 0.0}

    def is_past(self, seconds: float, what: str) -> bool:
        if past := time.perf_counter() - self.began > seconds:
            print(f"{what:>44}: left out, the time is over", flush=True)
        return past


def build_pipeline(sizes: Sizes, device: str) -> Pipeline:
    """Stable Diffusion 3 medium as its configuration on the Hub has it, with random weights."""

    def clip(width: int, layers: int, heads: int, act: str) -> CLIPTextModelWithProjection:
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

    width, inner, layers, heads = sizes.t5
    blocks = len(sizes.vae)
    torch.manual_seed(0)
    with torch.device(device):
        text_encoders = [clip(*of, act) for of, act in zip(sizes.clip, ("quick_gelu", "gelu"), strict=True)]
        t5 = T5EncoderModel(
            T5Config(
                d_model=width,
                d_kv=64,
                d_ff=inner,
                num_layers=layers,
                num_heads=heads,
                feed_forward_proj="gated-gelu",
                vocab_size=32128,
            )
        )
        transformer = SD3Transformer2DModel(
            sample_size=128,
            patch_size=2,
            in_channels=16,
            attention_head_dim=64,
            joint_attention_dim=width,
            pooled_projection_dim=sum(of[0] for of in sizes.clip),
            out_channels=16,
            pos_embed_max_size=192,
            **sizes.denoiser,
        )
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * blocks,
            up_block_types=["UpDecoderBlock2D"] * blocks,
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
    letters = [
        ("<pad>", 0.0),
        ("</s>", 0.0),
        ("<unk>", 0.0),
        *((piece, -2.0) for piece in "▁abcdefghijklmnopqrstuvwxyz"),
    ]
    return Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=text_encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=text_encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=t5,
        tokenizer_3=T5Tokenizer(vocab=letters, extra_ids=0, model_max_length=512),
    ).to(device, sizes.dtype)


def matrix_limit(clock: Clock, sizes: Sizes, device: str) -> float:
    """TFLOP/s of a large matrix product in the generator's dtype; the best of five turns of ten."""
    a, b = (torch.randn(sizes.matrix, sizes.matrix, device=device, dtype=sizes.dtype) for _ in range(2))

    def ten() -> None:
        for _ in range(10):
            a @ b

    ten()
    best = min(clock.measure(ten)["seconds"] for _ in range(5))
    return 10 * 2 * sizes.matrix**3 / best / 1e12


def parts_of_a_picture(clock: Clock, sizes: Sizes, pipeline: Pipeline, limit: float) -> dict[str, dict[str, float]]:
    """Each part for a batch: seconds, TFLOP and share of the limit a picture; `times` it comes in one picture."""
    batch = sizes.batches[-2]
    device, dtype = pipeline.device, pipeline.dtype
    prompts = [f"a red circle, number {number}" for number in range(batch)]
    side = sizes.pixels // 8

    def encode() -> tuple[torch.Tensor, ...]:
        return pipeline.encode_prompt(prompts, None, None, device=device)

    def denoise() -> None:
        pipeline.transformer(
            hidden_states=noise, timestep=when, encoder_hidden_states=words, pooled_projections=pooled
        )

    def decode() -> None:
        pipeline.vae.decode(noise[:batch].to(pipeline.vae.dtype))

    def measure(name: str, function: Callable[[], object], times: int) -> None:
        with FlopCounterMode(display=False) as counter:
            function()
        measured = clock.measure(function)
        tflop = counter.get_total_flops() / batch / 1e12
        seconds = measured["seconds"] / batch
        found[name] = {
            "seconds": seconds,
            "tflop": tflop,
            "of_limit": tflop / seconds / limit,
            "gigabytes": measured["gigabytes"],
            "times": times,
        }
        print(
            f"{name:>44}: {1e3 * times * seconds:9.2f} ms and {times * tflop:9.4f} TFLOP a picture, "
            f"{found[name]['of_limit']:.2f} of the limit, {measured['gigabytes']:6.2f} GB",
            flush=True,
        )

    found: dict[str, dict[str, float]] = {}
    with torch.no_grad():
        words, empty, pooled, pooled_empty = encode()
        words, pooled = torch.cat([empty, words]), torch.cat([pooled_empty, pooled])
        noise = torch.randn(2 * batch, 16, side, side, device=device, dtype=dtype)
        when = torch.full((2 * batch,), 500.0, device=device, dtype=dtype)
        measure("text encoders, both prompts", encode, 1)
        t5 = pipeline.text_encoder_3
        pipeline.text_encoder_3 = None
        measure("text encoders without T5", encode, 1)
        pipeline.text_encoder_3 = t5
        measure("denoiser, all steps, with guidance", denoise, sizes.steps)
        measure("decoder", decode, 1)
        vae = pipeline.vae
        vae.tile_latent_min_size, vae.tile_sample_min_size = side // 2, sizes.pixels // 2  # else a picture is one tile
        vae.enable_tiling()
        measure("decoder with tiling, of half the width", decode, 1)
        vae.disable_tiling()
        if dtype != torch.float32:
            pipeline.vae.float()
            measure("decoder in float32", decode, 1)
            pipeline.vae.to(dtype)
    return found


def ways_to_draw(
    clock: Clock, sizes: Sizes, pipeline: Pipeline, limit: float, parts: dict, until: float
) -> tuple[dict[str, dict[str, float]], int]:
    """Pictures a second of each, the first two are what the others are compared with; and the batch size that
    `render_batch_size: auto` found.
    """
    device, name_of_dtype = str(pipeline.device), str(sizes.dtype).split(".")[1]
    rows: dict[str, dict[str, float]] = {}
    jobs = [(f"a photo of a red circle, number {number}", number) for number in range(1000)]

    def show(name: str, drawn: int, measured: dict[str, float], tflop: float | None) -> None:
        rate = drawn / measured["seconds"]
        row = rows[name] = {"pictures_per_second": rate, "gigabytes": measured["gigabytes"]}
        first = [other["pictures_per_second"] for other in rows.values()][:2]
        row["over_default"] = rate / first[0]
        row["over_one_at_a_time"] = rate / first[-1]
        row["of_limit"] = tflop and tflop * rate / limit
        share = f"{row['of_limit']:.2f} of the limit" if tflop else " " * 17
        print(
            f"{name:>44}: {rate:8.3f} pictures/s, {row['over_default']:7.2f} x default, "
            f"{row['over_one_at_a_time']:6.2f} x one at a time, {share}, {row['gigabytes']:6.2f} GB",
            flush=True,
        )

    def cost(steps: int, guidance: bool = True, t5: bool = True) -> float:
        """TFLOP of a picture."""
        encoders = "text encoders, both prompts" if t5 else "text encoders without T5"
        share = 1.0 if guidance else 0.5
        return (
            parts[encoders]["tflop"] * share
            + steps * parts["denoiser, all steps, with guidance"]["tflop"] * share
            + parts["decoder"]["tflop"]
        )

    def renderer(steps: int, guidance: float = 5.0, **settings) -> Renderer:
        return as_renderer(sizes, pipeline, steps, guidance, **settings)

    def way(
        name: str, batch: int, steps: int = sizes.steps, guidance: float = 5.0, t5: bool = True, **settings
    ) -> None:
        """Draws a batch with a single step first, then what counts."""
        if clock.is_past(until, name):
            return
        try:
            made = renderer(1, guidance, batch_size=batch, **settings)
            made.draw(jobs[:batch])
            made.render_kwargs["num_inference_steps"] = steps
            count = max(batch, sizes.batches[-2])
            measured = clock.measure(lambda: made.draw(jobs[:count]))
        except torch.OutOfMemoryError:
            print(f"{name:>44}: out of memory", flush=True)
            return
        show(name, count, measured, cost(steps, guidance > 1, t5))

    # As they are: what a first script does
    with torch.no_grad():
        pipeline.to(torch.float32)
        size = {"height": sizes.default_pixels, "width": sizes.default_pixels}
        pipeline(jobs[0][0], num_inference_steps=1, **size)
        by_default = clock.measure(lambda: pipeline(jobs[0][0], num_inference_steps=sizes.default_steps, **size))
    show(f"default: float32, {sizes.default_pixels} px, {sizes.default_steps} steps", 1, by_default, None)
    # The machine's matrix product in float32 is another limit, so its share is not told
    pipeline.to(sizes.dtype)
    one_by_one = renderer(1, batch_size=1)
    one_by_one.draw(jobs[:1])
    one_by_one.render_kwargs["num_inference_steps"] = sizes.steps
    count = min(4, sizes.batches[-1])
    measured = clock.measure(lambda: [one_by_one.draw([job]) for job in jobs[:count]])
    show(f"one at a time, {name_of_dtype}, {sizes.pixels} px, {sizes.steps} steps", count, measured, cost(sizes.steps))

    for batch in sizes.batches:
        way(f"batches of {batch}", batch)
    rates = {batch: rows[f"batches of {batch}"] for batch in sizes.batches if f"batches of {batch}" in rows}
    best = max(rates, key=lambda batch: rates[batch]["pictures_per_second"], default=sizes.batches[-2])
    found = best
    if not clock.is_past(until, "render_batch_size: auto"):
        searching = renderer(max(1, sizes.steps // 5), batch_size="auto")
        seconds = clock.measure(lambda: searching.draw(jobs[: sizes.searched]))["seconds"]
        found = searching.batch_size
        print(
            f"{'render_batch_size: auto':>44}: {found} (with a fifth of the steps, {seconds:.1f} s); the best of the "
            f"above is {best}",
            flush=True,
        )

    with torch.no_grad():
        embeddings = pipeline.encode_prompt([prompt for prompt, _ in jobs[:best]], None, None, device=pipeline.device)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    arguments = dict(zip(names, embeddings, strict=True)) | {"num_inference_steps": sizes.steps, "guidance_scale": 5.0}
    arguments |= {"height": sizes.pixels, "width": sizes.pixels, "output_type": "pt"}
    if not clock.is_past(until, "embeddings given"):
        with torch.no_grad():
            measured = clock.measure(lambda: pipeline(**arguments))
        show(f"batches of {best}, embeddings given", best, measured, cost(sizes.steps))
    without = {part: pipeline.components[part] for part in ("text_encoder_3", "tokenizer_3")}
    pipeline.register_modules(**dict.fromkeys(without))
    if device.startswith("cuda"):
        without["text_encoder_3"].to("cpu")
    way(f"batches of {best}, without T5", best, t5=False)
    without["text_encoder_3"].to(device)
    pipeline.register_modules(**without)
    way(f"batches of {best}, without guidance", best, guidance=1.0)
    way(f"batches of {best}, half the steps", best, steps=sizes.steps // 2)
    way(f"batches of {best}, 4 steps, no guidance (distilled)", best, steps=4, guidance=1.0)
    way(f"batches of {best}, fuse_qkv", best, fuse_qkv=True)
    pipeline.transformer.unfuse_qkv_projections()
    if device != "cpu":  # a CPU's kernels take minutes to build
        way(f"batches of {best}, compile_generator", best, compile_models=True)
        for module in (pipeline.transformer, pipeline.vae.decoder):
            module._compiled_call_impl = None
    return rows, found


def as_renderer(sizes: Sizes, pipeline: Pipeline, steps: int, guidance: float, **settings) -> Renderer:
    """The pipeline as Brushup draws with it."""
    size = {"height": sizes.pixels, "width": sizes.pixels}
    with patch.object(DiffusionPipeline, "from_pretrained", lambda *_, **__: pipeline):
        return Renderer(
            "random weights",
            render_kwargs={"num_inference_steps": steps, "guidance_scale": guidance, **size},
            device=pipeline.device.type,
            gpu_memory_fraction=1.0,
            **settings,
        )


def load_scorer(settings: dict, device: str) -> Callable:
    """With random weights, but for the tiny one, which is here."""
    load = load_reward if settings["model_name"].startswith("local-dir:") else load_random
    return load("clip", device=device, **settings)


def scorers(clock: Clock, sizes: Sizes, device: str) -> dict[str, dict[str, float]]:
    """Pictures a second of each image reward, for the pictures of a step."""
    count = sizes.prompts * sizes.rewrites
    shape = (3, sizes.pixels, sizes.pixels)
    pictures = [torch.randint(256, shape, dtype=torch.uint8, device=device) for _ in range(count)]
    prompts, found = ["a red circle"] * count, {}
    for name, settings in sizes.scorers.items():
        reward = load_scorer(settings, device)
        reward(pictures, prompts, prompts)
        measured = clock.measure(lambda reward=reward: reward(pictures, prompts, prompts))
        found[name] = {"pictures_per_second": count / measured["seconds"], "gigabytes": measured["gigabytes"]}
        print(f"{name:>44}: {found[name]['pictures_per_second']:8.1f} pictures/s, {found[name]['gigabytes']:6.2f} GB")
    return found


class Spans:
    """Adds up the seconds inside of functions, of the last training step."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    def watch(self, owner: object, method: str, name: str) -> None:
        function = getattr(owner, method)

        def timed(*args, **kwargs):
            begin = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin

        setattr(owner, method, timed)


class LastStep(TrainerCallback):
    """Takes the seconds of the last step; the step before draws with one denoising step, to warm up."""

    def __init__(self, spans: Spans, renderer: Renderer, steps: int):
        self.spans, self.renderer, self.steps = spans, renderer, steps

    def on_step_begin(self, args, state, control, **kwargs):
        last = state.global_step + 1 == state.max_steps
        self.renderer.render_kwargs["num_inference_steps"] = self.steps if last else 1
        self.spans.seconds.clear()
        self.renderer.images_drawn = 0
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.spans.seconds["step"] = time.perf_counter() - self.began


def grpo_step(
    clock: Clock, sizes: Sizes, policy: str, pipeline: Pipeline, batch: int, device: str
) -> dict[str, float]:
    """Seconds of a step of `PromptEnhancerTrainer`, and of its parts. Every answer is drawn, whatever it says.

    "the rest" is what lies between generating and training, less drawing: log-probabilities, advantages, and below 0
    what was drawn meanwhile.
    """
    gc.collect()  # the policy before
    renderer = as_renderer(sizes, pipeline, 1, 5.0, batch_size=batch)
    worker = LocalWorker(renderer, {"clip": load_scorer(list(sizes.scorers.values())[-1], device)})
    with torch.device(device):
        model = Qwen2VLForConditionalGeneration._from_config(qwen2_vl_config(policy), dtype=sizes.dtype)
    answers = iter(range(10**9))
    spans = Spans()
    with (
        tempfile.TemporaryDirectory() as folder,
        patch("brushup.trainer.parse_answer", lambda *_, **__: f"a red circle, number {next(answers)}"),
    ):
        args = PromptEnhancerConfig(
            output_dir=folder,
            reward_funcs=["clip"],
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
            model,
            worker,
            args,
            train_dataset=load_prompts(str(TINY_WORLD / "train.jsonl")),
            processing_class=AutoProcessor.from_pretrained(TINY_WORLD / "policy"),
            peft_config=LoraConfig(
                r=16,
                lora_alpha=32,
                target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                task_type="CAUSAL_LM",
            ),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(LastStep(spans, renderer, sizes.steps))
        spans.watch(trainer, "_generate", "generate")
        spans.watch(trainer, "_prepare_inputs", "prepare")
        spans.watch(renderer, "draw", "draw")
        spans.watch(worker, "score", "draw and score")
        memory = clock.measure(trainer.train)["gigabytes"]
    seconds = spans.seconds
    parts = {
        "generate": seconds["generate"],
        "draw": seconds["draw"],
        "score": seconds["draw and score"] - seconds["draw"],
        "train": seconds["step"] - seconds["prepare"],
        "step": seconds["step"],
    }
    parts["the rest"] = seconds["prepare"] - seconds["generate"] - seconds["draw and score"]
    print(
        f"{'Qwen2-VL ' + policy:>44}: "
        + ", ".join(f"{name} {value:.2f} s ({value / parts['step']:.0%})" for name, value in parts.items())
        + f"; {renderer.images_drawn} pictures, {memory:.1f} GB",
        flush=True,
    )
    return parts | {"pictures": renderer.images_drawn, "gigabytes": memory}


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
    on = torch.cuda.get_device_name() if device == "cuda" else f"{device}, {torch.get_num_threads()} threads"
    print(f"{on}; {'tiny models: the figures say nothing about a GPU' if small else 'models of their real size'}")

    results: dict = {"device": on, "small": small}
    limit = results["matrix_tflops"] = matrix_limit(clock, sizes, device)
    print(f"\nMatrix product of {sizes.matrix}, {sizes.dtype}: {limit:.3g} TFLOP/s: the limit\n")
    pipeline = build_pipeline(sizes, device)
    pipeline.set_progress_bar_config(disable=True)
    print(f"Parts of a picture of {sizes.pixels} px, {sizes.steps} steps, in a batch of {sizes.batches[-2]}")
    parts = results["parts"] = parts_of_a_picture(clock, sizes, pipeline, limit)
    print("\nWays to draw")
    results["ways"], batch = ways_to_draw(clock, sizes, pipeline, limit, parts, until=270)
    results["auto_batch_size"] = batch
    print("\nScorers")
    results["scorers"] = scorers(clock, sizes, device)
    count = sizes.prompts * sizes.rewrites
    print(f"\nA GRPO step: {count} answers of {sizes.tokens} tokens, {count} pictures")
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
