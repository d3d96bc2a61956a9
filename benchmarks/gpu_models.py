"""What gpu.py measures: models of their real size with random weights, and the stopwatch."""

import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import open_clip
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers import StableDiffusion3Pipeline as Pipeline
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from brushup.config import RenderConfig
from brushup.render.renderer import Renderer
from brushup.rewards.registry import RewardSpec


TINY_WORLD = Path(__file__).parent.parent / "data" / "tiny_world"
Row = dict[str, float | str | None]

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
    prompt_tokens: int = 128
    tokens: int = 64  # of a completion
    micro_batches: tuple[int, ...] = (8, 16, 32, 64)
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
    steps=4,
    default_pixels=64,
    default_steps=3,
    batches=(1, 2),
    prompts=1,
    rewrites=4,
    prompt_tokens=16,
    tokens=4,
    micro_batches=(1, 4),
    scorers={"tiny": {"model_name": f"local-dir:{TINY_WORLD / 'scorer'}"}},
    policies=("tiny",),
    denoiser={"num_layers": 2, "num_attention_heads": 1, "caption_projection_dim": 64},
    vae=(8, 8, 8, 8),
    clip=((32, 2, 2), (32, 2, 2)),
    t5=(64, 64, 1, 2),
)


class TimeIsOver(BaseException):
    """Stops a measurement that has no time left; no `except Exception` on the way mistakes it for a failure."""


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

    def attempt(self, name: str, measure: Callable[[], Row], until: float) -> Row:
        """Return the row that `measure()` returns, or why there is none: {"left_out": reason}.

        It fails, runs out of memory, or is not done when the script has run for `until` seconds.
        """
        left = until - (time.perf_counter() - self.began)
        try:
            if left <= 0:
                raise TimeIsOver("the time is over")
            with alarm(left):
                return measure()
        except (
            Exception,
            TimeIsOver,
        ) as error:  # any: it comes from a compiler, a kernel, a package that is not there
            reason = f"{type(error).__name__}: {error}".removeprefix("TimeIsOver: ").split("\n")[0][:200]
        gc.collect()
        torch.compiler.reset()
        if self.cuda:
            torch.cuda.empty_cache()
        print(f"{name:>56}: left out: {reason}", flush=True)
        return {"left_out": reason}


@contextmanager
def alarm(seconds: float) -> Iterator[None]:
    """Raise `TimeIsOver` in the block if it takes longer."""

    def ring(*_) -> None:
        raise TimeIsOver(f"not done in the {seconds:.0f} s that were left")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
    for part in (*text_encoders, t5, transformer, vae):
        part.eval()  # as `from_pretrained` does: T5 would drop a tenth of its activations
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
