"""Train the generator of the tiny world: a Stable Diffusion 3 that knows `world.caption`s only."""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.training_utils import EMAModel
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, set_seed

import world
from learning import DEVICE, optimize, to_tensor, train_clip_tokenizer


TEXT_LENGTH = 24  # tokens that the text encoders read: a caption has at most 22
BATCH, STEPS = 32, 3000


def train_vae(pictures: torch.Tensor, scale: float) -> AutoencoderKL:
    """Return a VAE for images (n, 3, 48, 48): 4 channels of 12x12; first as a whole, then its decoder alone.

    Pixels around shapes count more than the background, those of faint shapes most: without the weights, small green
    crosses on gray decode as circles. The decoder learns on from latents with noise, since it will decode generated
    ones. Two channels and more share a normalization group, since a channel of its own would lose its level, and so
    the absolute colours.
    """
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=world.PICTURE_SIZE,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    ).to(DEVICE)

    def loss(noise: float = 0.0) -> torch.Tensor:
        batch = pictures[torch.randint(len(pictures), (16,))]
        with torch.autocast(DEVICE, torch.bfloat16):
            posterior = vae.encode(batch).latent_dist
            latents = posterior.sample()
            latents = latents + noise * torch.rand(16, 1, 1, 1, device=DEVICE) * torch.randn_like(latents)
            error = vae.decode(latents).sample.float() - batch
        contrast = (batch - batch[:, :, :1, :1]).abs().amax(1, keepdim=True)  # to the background
        contrast = F.max_pool2d(contrast, 5, stride=1, padding=2)
        weight = 1 + (contrast > 0.15).float() * 2 / (contrast.square() + 0.1)
        error = (weight * (error.square() + 0.1 * error.abs())).mean() / weight.mean()
        return error + 1e-4 * posterior.kl().float().mean() / 256

    optimize("VAE", list(vae.parameters()), loss, steps=max(2, int(2500 * scale)), lr=2.5e-3)
    vae.encoder.requires_grad_(False)
    params = list(vae.decoder.parameters())
    optimize("decoder", params, lambda: loss(noise=0.35), steps=max(2, int(1500 * scale)), lr=2e-3)
    return vae.eval().requires_grad_(False)


def text_encoder(tokenizer: CLIPTokenizer, width: int, layers: int) -> CLIPTextModelWithProjection:
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            projection_dim=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 32,
            max_position_embeddings=TEXT_LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    ).to(DEVICE)


def train_generator(output: Path, scale: float, seed: int) -> None:
    """Train a Stable Diffusion 3 (VAE, two CLIP text encoders, MMDiT; no T5) that knows `world.caption`s only.

    Rectified flow with logit-normal time steps, as in Esser et al. 2024 (arXiv 2403.03206); one caption in ten is
    dropped for classifier-free guidance.
    """
    set_seed(seed)
    rng = random.Random(seed)
    scenes = [world.random_scene(rng) for _ in range(max(256, int(40_000 * min(1, scale))))]
    captions = [world.caption(scene) for scene in scenes]
    pictures = to_tensor([world.draw_scene(scene, rng) for scene in scenes])
    vae = train_vae(pictures, scale)
    with torch.no_grad():
        latents = torch.cat([vae.encode(chunk).latent_dist.mean for chunk in pictures.split(256)])
    shift, spread = latents.mean().item(), latents.std().item()
    vae.register_to_config(shift_factor=shift, scaling_factor=1 / spread)
    latents = (latents - shift) / spread

    tokenizer = train_clip_tokenizer(captions[:3000], TEXT_LENGTH)
    # SD3 reads the tokens before the last layer: three layers give what two have read
    encoders = [text_encoder(tokenizer, width=96, layers=3), text_encoder(tokenizer, width=32, layers=2)]
    transformer = SD3Transformer2DModel(
        sample_size=12,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=4,
        joint_attention_dim=128,
        caption_projection_dim=128,
        pooled_projection_dim=128,
        pos_embed_max_size=6,
        qk_norm="rms_norm",
    ).to(DEVICE)
    pipeline = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=2.0),
        vae=vae,
        text_encoder=encoders[0],
        tokenizer=tokenizer,
        text_encoder_2=encoders[1],
        tokenizer_2=tokenizer,
        text_encoder_3=None,
        tokenizer_3=None,
    )

    def flow_loss() -> torch.Tensor:
        index = torch.randint(len(latents), (BATCH,))
        texts = [captions[i] if rng.random() > 0.1 else "" for i in index.tolist()]
        clean, noise = latents[index], torch.randn(BATCH, 4, 12, 12, device=DEVICE)
        sigma = torch.sigmoid(torch.randn(BATCH, device=DEVICE))
        mixed = noise * sigma.view(-1, 1, 1, 1) + clean * (1 - sigma.view(-1, 1, 1, 1))
        with torch.autocast(DEVICE, torch.bfloat16):
            embeds, _, pooled, _ = pipeline.encode_prompt(
                texts, None, None, device=DEVICE, do_classifier_free_guidance=False, max_sequence_length=1
            )
            predicted = transformer(mixed, embeds, pooled, sigma * 1000).sample
        return F.mse_loss(predicted.float(), noise - clean)

    modules = torch.nn.ModuleList([transformer, *encoders])
    params = list(modules.parameters())
    average = EMAModel(params, decay=0.998, foreach=True)
    steps = max(2, int(STEPS * scale))
    optimize("generator", params, flow_loss, steps, 5e-3, after=lambda: average.step(params))
    average.copy_to(params)
    pipeline.to(torch.float16).save_pretrained(output / "generator")
