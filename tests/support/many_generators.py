"""Tiny pipelines of the other text-to-image classes of diffusers; their models are loud, so that a leak shows."""

from inspect import signature
from pathlib import Path

import diffusers
import torch
from conftest import TINY_WORLD
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLQwenImage,
    BriaPipeline,
    BriaTransformer2DModel,
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
    IFPipeline,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LDMTextToImagePipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
    OmniGenPipeline,
    OmniGenTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    PriorTransformer,
    PRXPixelPipeline,
    PRXTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
    StableUnCLIPPipeline,
    UNet2DConditionModel,
    VQModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoProcessor,
    BertConfig,
    BertModel,
    BertTokenizer,
    ByT5Tokenizer,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaConfig,
    GemmaModel,
    GemmaTokenizer,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
)

from support.generators import (
    LETTERS,
    TEXT_WIDTH,
    clip_text_config,
    clip_tokenizer,
    flux,
    pixart_sigma,
    sana,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    t5,
    t5_tokenizer,
    unet,
    vae,
)


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler()


def qwen_tokenizer() -> Qwen2Tokenizer:
    """A token a byte."""
    vocabulary = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    tokenizer = Qwen2Tokenizer(
        vocab={piece: number for number, piece in enumerate(vocabulary)},
        merges=[],
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHAT
    return tokenizer


def gemma_tokenizer(limit: int = 512) -> GemmaTokenizer:
    vocabulary = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *LETTERS]
    vocabulary = {piece: number for number, piece in enumerate(vocabulary)}
    return GemmaTokenizer(vocab=vocabulary, add_bos_token=True, model_max_length=limit)


TEXT = {
    "vocab_size": 1500,
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": TEXT_WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": TEXT_WIDTH}
ROPE = {"rope_type": "default", "mrope_section": [2, 2, 4], "rope_theta": 10_000.0}


def qwen3(kind: type = Qwen3Model) -> Qwen3Model:
    return kind(Qwen3Config(**TEXT, head_dim=16))


def qwen2_5_vl() -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": ROPE}, vision_config=VISION)
    )


def qwen3_vl(kind: type, layers: int = 2) -> Qwen3VLModel:
    text = {**TEXT, "num_hidden_layers": layers, "head_dim": 16, "rope_parameters": ROPE}
    return kind(Qwen3VLConfig(text_config=text, vision_config={**VISION, "deepstack_visual_indexes": []}))


def qwen_vae() -> AutoencoderKLQwenImage:
    """Four channels, a quarter of the width."""
    return AutoencoderKLQwenImage(
        base_dim=24,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def deep_vae() -> AutoencoderKL:
    """Four channels, an eighth of the width."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )


def two_layers(model: torch.nn.Module) -> torch.nn.Module:
    """The model with another number of layers: perturbed attention wants its default layer, the second."""
    return type(model).from_config({**model.config, "num_layers": 2})


def with_parts_of(kind: type, base: DiffusionPipeline, **parts) -> DiffusionPipeline:
    """A pipeline of this class with the parts of another one."""
    known = signature(kind.__init__).parameters
    return kind(**{name: part for name, part in {**base.components, **parts}.items() if name in known})


def aura_flow() -> AuraFlowPipeline:
    return AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(),
        transformer=AuraFlowTransformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_projection_dim=32,
            joint_attention_dim=TEXT_WIDTH,
            out_channels=4,
            pos_embed_max_size=256,
        ),
        scheduler=flow(),
    )


def bria() -> BriaPipeline:
    return BriaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(),
        transformer=BriaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            pooled_projection_dim=None,
            axes_dims_rope=[0, 4, 4],
        ),
        scheduler=flow(),
    )


def chroma() -> ChromaPipeline:
    return ChromaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(),
        transformer=ChromaTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            axes_dims_rope=[4, 4, 8],
            approximator_hidden_dim=32,
            approximator_layers=1,
            approximator_num_channels=16,
        ),
        scheduler=flow(),
    )


def cogview3_plus() -> CogView3PlusPipeline:
    return CogView3PlusPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        vae=vae(),
        transformer=CogView3PlusTransformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=TEXT_WIDTH,
            time_embed_dim=8,
            condition_dim=2,
            pos_embed_max_size=8,
            sample_size=8,
        ),
        scheduler=CogVideoXDDIMScheduler(),
    )


def cogview4() -> CogView4Pipeline:
    tokenizer = gemma_tokenizer()  # starts each text with a token, as GLM's
    tokenizer.padding_side = "left"
    return CogView4Pipeline(
        tokenizer=tokenizer,
        text_encoder=GlmModel(GlmConfig(**TEXT, head_dim=16)),
        vae=vae(),
        transformer=CogView4Transformer2DModel(
            patch_size=2,
            in_channels=4,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            out_channels=4,
            text_embed_dim=TEXT_WIDTH,
            time_embed_dim=8,
            condition_dim=4,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear"),
    )


def deepfloyd_if() -> IFPipeline:
    return IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=UNet2DConditionModel(
            sample_size=32,
            layers_per_block=1,
            block_out_channels=[16, 32],
            down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
            in_channels=3,
            out_channels=6,
            cross_attention_dim=32,
            encoder_hid_dim=TEXT_WIDTH,
            attention_head_dim=8,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
            resnet_time_scale_shift="scale_shift",
            norm_num_groups=8,
        ),
        scheduler=DDPMScheduler(variance_type="learned_range"),
        watermarker=None,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def flux2_klein() -> Flux2KleinPipeline:
    return Flux2KleinPipeline(
        tokenizer=qwen_tokenizer(),
        text_encoder=qwen3(Qwen3ForCausalLM),
        vae=AutoencoderKLFlux2(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 8),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=2,
            use_quant_conv=False,
            use_post_quant_conv=False,
        ),
        transformer=Flux2Transformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            axes_dims_rope=[4, 4, 4, 4],
            guidance_embeds=False,
        ),
        scheduler=flow(),
    )


def hidream() -> HiDreamImagePipeline:
    clip = clip_text_config()
    clip.max_position_embeddings = 128
    return HiDreamImagePipeline(
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
        tokenizer_4=qwen_tokenizer(),
        text_encoder=CLIPTextModelWithProjection(clip),
        text_encoder_2=CLIPTextModelWithProjection(clip),
        text_encoder_3=t5(),
        text_encoder_4=LlamaForCausalLM(LlamaConfig(**TEXT)),
        vae=AutoencoderKL(block_out_channels=(8,), latent_channels=4, norm_num_groups=4, shift_factor=0.0),
        transformer=HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            caption_channels=[TEXT_WIDTH, TEXT_WIDTH],
            text_emb_dim=64,
            num_routed_experts=2,
            num_activated_experts=1,
            axes_dims_rope=(4, 2, 2),
            max_resolution=(32, 32),
            llama_layers=(0, 1),
        ),
        scheduler=flow(),
    )


def hunyuan_image() -> HunyuanImagePipeline:
    return HunyuanImagePipeline(
        tokenizer=qwen_tokenizer(),
        text_encoder=qwen2_5_vl(),
        tokenizer_2=ByT5Tokenizer(),
        text_encoder_2=t5(512),
        vae=AutoencoderKLHunyuanImage(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            block_out_channels=(32, 32, 32),
            layers_per_block=1,
            scaling_factor=0.5,
            spatial_compression_ratio=4,
            sample_size=32,
        ),
        transformer=HunyuanImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=4,
            attention_head_dim=8,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=(1, 1),
            text_embed_dim=TEXT_WIDTH,
            text_embed_2_dim=TEXT_WIDTH,
            rope_axes_dim=(4, 4),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def hunyuan_dit() -> HunyuanDiTPipeline:
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    return HunyuanDiTPipeline(
        tokenizer=BertTokenizer(vocab={piece: i for i, piece in enumerate(vocabulary)}, model_max_length=77),
        text_encoder=BertModel(
            BertConfig(
                vocab_size=256,
                hidden_size=TEXT_WIDTH,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                max_position_embeddings=77,
            )
        ),
        tokenizer_2=t5_tokenizer(),
        text_encoder_2=t5(),
        vae=deep_vae(),
        transformer=HunyuanDiT2DModel(
            sample_size=8,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            in_channels=4,
            cross_attention_dim=TEXT_WIDTH,
            cross_attention_dim_t5=TEXT_WIDTH,
            pooled_projection_dim=16,
            hidden_size=24,
            activation_fn="gelu-approximate",
        ),
        scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def kandinsky3() -> Kandinsky3Pipeline:
    return Kandinsky3Pipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5(),
        unet=Kandinsky3UNet(
            in_channels=4,
            time_embedding_dim=4,
            groups=2,
            attention_head_dim=4,
            layers_per_block=3,
            block_out_channels=(32, 64),
            cross_attention_dim=4,
            encoder_hid_dim=TEXT_WIDTH,
        ),
        movq=VQModel(
            block_out_channels=[32, 64],
            down_block_types=["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
            up_block_types=["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=8,
            norm_type="spatial",
            num_vq_embeddings=12,
            vq_embed_dim=4,
        ),
        scheduler=DDPMScheduler(),
    )


def kandinsky5() -> Kandinsky5T2IPipeline:
    return Kandinsky5T2IPipeline(
        tokenizer=AutoProcessor.from_pretrained(TINY_WORLD / "policy", padding_side="right"),
        text_encoder=qwen2_5_vl(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_2=CLIPTextModel(clip_text_config()),
        vae=vae(),
        transformer=Kandinsky5Transformer3DModel(
            in_visual_dim=4,
            in_text_dim=TEXT_WIDTH,
            in_text_dim2=TEXT_WIDTH,
            time_dim=16,
            out_visual_dim=4,
            patch_size=(1, 2, 2),
            model_dim=16,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(1, 1, 2),
            visual_cond=False,
            attention_type="regular",
        ),
        scheduler=flow(),
    )


def krea2() -> Krea2Pipeline:
    return Krea2Pipeline(
        tokenizer=qwen_tokenizer(),
        text_encoder=qwen3_vl(Qwen3VLModel),
        vae=qwen_vae(),
        transformer=Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=32,
            timestep_embed_dim=8,
            text_hidden_dim=TEXT_WIDTH,
            num_text_layers=3,
            text_num_attention_heads=2,
            text_num_key_value_heads=1,
            text_intermediate_size=16,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 2, 2),
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        text_encoder_select_layers=(0, 1, 2),
    )


def lcm() -> LatentConsistencyModelPipeline:
    return with_parts_of(
        LatentConsistencyModelPipeline,
        stable_diffusion(),
        unet=unet(cross_attention_dim=TEXT_WIDTH, time_cond_proj_dim=32),
        scheduler=LCMScheduler(),
        requires_safety_checker=False,
    )


def lumina() -> LuminaPipeline:
    return LuminaPipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=GemmaModel(GemmaConfig(**TEXT, head_dim=16)),
        vae=vae(),
        transformer=LuminaNextDiT2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=32,
            num_layers=1,
            num_attention_heads=2,
            num_kv_heads=2,
            multiple_of=16,
            learn_sigma=True,
            qk_norm=True,
            cross_attention_dim=TEXT_WIDTH,
        ),
        scheduler=flow(),
    )


def lumina2() -> Lumina2Pipeline:
    return Lumina2Pipeline(
        tokenizer=gemma_tokenizer(),
        text_encoder=Gemma2Model(Gemma2Config(**TEXT, head_dim=16)),
        vae=vae(),
        transformer=Lumina2Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            hidden_size=24,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=3,
            num_kv_heads=3,
            multiple_of=16,
            axes_dim_rope=[4, 2, 2],
            axes_lens=(512, 64, 64),
            cap_feat_dim=TEXT_WIDTH,
        ),
        scheduler=flow(),
    )


def nucleus() -> NucleusMoEImagePipeline:
    return NucleusMoEImagePipeline(
        processor=AutoProcessor.from_pretrained(TINY_WORLD / "policy", padding_side="right"),
        text_encoder=qwen3_vl(Qwen3VLForConditionalGeneration, layers=8),
        vae=qwen_vae(),
        transformer=NucleusMoEImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            axes_dims_rope=(8, 4, 4),
            moe_enabled=False,
            capacity_factors=[8.0],
        ),
        scheduler=flow(),
    )


def omnigen() -> OmniGenPipeline:
    return OmniGenPipeline(
        tokenizer=qwen_tokenizer(),
        vae=deep_vae(),
        transformer=OmniGenTransformer2DModel(
            hidden_size=16,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=32,
            num_layers=1,
            in_channels=4,
            time_step_dim=4,
            rope_scaling={"long_factor": [1, 2], "short_factor": [1, 2]},
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True, num_train_timesteps=1),
    )


def ovis() -> OvisImagePipeline:
    return OvisImagePipeline(
        tokenizer=qwen_tokenizer(),
        text_encoder=qwen3(),
        vae=vae(),
        transformer=OvisImageTransformer2DModel(
            patch_size=1,
            in_channels=16,
            out_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            axes_dims_rope=(4, 4, 8),
        ),
        scheduler=flow(),
    )


def prx_pixel() -> PRXPixelPipeline:
    return PRXPixelPipeline(
        tokenizer=qwen_tokenizer(),
        text_encoder=qwen3(),
        transformer=PRXTransformer2DModel(
            patch_size=2,
            in_channels=3,
            context_in_dim=TEXT_WIDTH,
            hidden_size=8,
            mlp_ratio=2.0,
            num_heads=2,
            depth=1,
            axes_dim=[2, 2],
            bottleneck_size=8,
            resolution_embeds=True,
        ),
        scheduler=flow(),
        prompt_max_tokens=64,
    )


def qwen_image() -> QwenImagePipeline:
    return QwenImagePipeline(
        tokenizer=qwen_tokenizer(),
        text_encoder=qwen2_5_vl(),
        vae=qwen_vae(),
        transformer=QwenImageTransformer2DModel(
            patch_size=2,
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=TEXT_WIDTH,
            axes_dims_rope=(8, 4, 4),
        ),
        scheduler=flow(),
    )


def sana_sprint() -> SanaSprintPipeline:
    return with_parts_of(
        SanaSprintPipeline,
        sana(),
        transformer=SanaTransformer2DModel(
            sample_size=8,
            patch_size=1,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
            num_cross_attention_heads=2,
            cross_attention_head_dim=16,
            cross_attention_dim=32,
            caption_channels=TEXT_WIDTH,
            qk_norm="rms_norm_across_heads",
            guidance_embeds=True,
        ),
        scheduler=SCMScheduler(),
    )


def z_image() -> ZImagePipeline:
    return ZImagePipeline(
        tokenizer=qwen_tokenizer(),
        text_encoder=qwen3(),
        vae=vae(),
        transformer=ZImageTransformer2DModel(
            all_patch_size=(2,),
            all_f_patch_size=(1,),
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            n_kv_heads=2,
            qk_norm=True,
            cap_feat_dim=TEXT_WIDTH,
            axes_dims=[8, 4, 4],
            axes_lens=[512, 32, 32],
        ),
        scheduler=flow(),
    )


def latent_diffusion() -> LDMTextToImagePipeline:
    parts = stable_diffusion().components
    return LDMTextToImagePipeline(
        vqvae=deep_vae(), bert=parts["text_encoder"], **{n: parts[n] for n in ("tokenizer", "unet", "scheduler")}
    )


def stable_unclip() -> StableUnCLIPPipeline:
    return StableUnCLIPPipeline(
        prior_tokenizer=clip_tokenizer(),
        prior_text_encoder=CLIPTextModelWithProjection(clip_text_config()),
        prior=PriorTransformer(num_attention_heads=2, attention_head_dim=12, embedding_dim=TEXT_WIDTH, num_layers=1),
        prior_scheduler=DDPMScheduler(
            variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0
        ),
        image_normalizer=StableUnCLIPImageNormalizer(embedding_dim=TEXT_WIDTH),
        image_noising_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=clip_tokenizer(),
        text_encoder=CLIPTextModel(clip_text_config()),
        unet=unet(
            cross_attention_dim=TEXT_WIDTH,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=2 * TEXT_WIDTH,
        ),
        scheduler=DDIMScheduler(),
        vae=vae(),
    )


SQUARE = {"height": 32, "width": 32}
AS_ASKED = {**SQUARE, "use_resolution_binning": False}
CLEAN = {**AS_ASKED, "clean_caption": False}
SANA = {**CLEAN, "complex_human_instruction": None}
BUILDERS = {
    "AuraFlowPipeline": (aura_flow, SQUARE),
    "BriaPipeline": (bria, SQUARE),
    "ChromaPipeline": (chroma, SQUARE),
    "CogView3PlusPipeline": (cogview3_plus, SQUARE),
    "CogView4Pipeline": (cogview4, SQUARE),
    "Flux2KleinKVPipeline": (flux2_klein, {**SQUARE, "text_encoder_out_layers": [1]}),
    "Flux2KleinPipeline": (flux2_klein, {**SQUARE, "text_encoder_out_layers": [1]}),
    "FluxKontextPipeline": (flux, {**SQUARE, "max_area": 1024}),
    "FluxPipeline": (flux, SQUARE),
    "HiDreamImagePipeline": (hidream, SQUARE),
    "HunyuanDiTPAGPipeline": (hunyuan_dit, AS_ASKED),
    "HunyuanDiTPipeline": (hunyuan_dit, AS_ASKED),
    "HunyuanImagePipeline": (hunyuan_image, SQUARE),
    "IFPipeline": (deepfloyd_if, {**SQUARE, "clean_caption": False}),
    "Kandinsky3Pipeline": (kandinsky3, SQUARE),
    "Kandinsky5T2IPipeline": (kandinsky5, SQUARE),
    "Krea2Pipeline": (krea2, SQUARE),
    "LDMTextToImagePipeline": (latent_diffusion, SQUARE),
    "LatentConsistencyModelPipeline": (lcm, SQUARE),
    "Lumina2Pipeline": (lumina2, SQUARE),
    "LuminaPipeline": (lumina, {**SQUARE, "clean_caption": False}),
    "NucleusMoEImagePipeline": (nucleus, {**SQUARE, "return_index": -1}),
    "OmniGenPipeline": (omnigen, SQUARE),
    "OvisImagePipeline": (ovis, SQUARE),
    "PRXPixelPipeline": (prx_pixel, AS_ASKED),
    "PixArtAlphaPipeline": (pixart_sigma, CLEAN),
    "PixArtSigmaPAGPipeline": (pixart_sigma, CLEAN),
    "PixArtSigmaPipeline": (pixart_sigma, CLEAN),
    "QwenImagePipeline": (qwen_image, {**SQUARE, "true_cfg_scale": 1.0}),
    "SanaPAGPipeline": (sana, SANA),
    "SanaPipeline": (sana, SANA),
    "SanaSprintPipeline": (sana_sprint, SANA),
    "StableDiffusion3PAGPipeline": (stable_diffusion_3, SQUARE),
    "StableDiffusion3Pipeline": (stable_diffusion_3, SQUARE),
    "StableDiffusionPAGPipeline": (stable_diffusion, SQUARE),
    "StableDiffusionPipeline": (stable_diffusion, SQUARE),
    "StableDiffusionXLPAGPipeline": (stable_diffusion_xl, SQUARE),
    "StableDiffusionXLPipeline": (stable_diffusion_xl, SQUARE),
    "StableUnCLIPPipeline": (stable_unclip, {**SQUARE, "prior_num_inference_steps": 2}),
    "ZImagePipeline": (z_image, SQUARE),
}
# These render onto an image, and are built from the parts of another class.
ONTO_IMAGES = {
    "ChromaImg2ImgPipeline": chroma,
    "ChromaInpaintPipeline": chroma,
    "CogView4ControlPipeline": cogview4,
    "Flux2KleinInpaintPipeline": flux2_klein,
    "FluxControlImg2ImgPipeline": flux,
    "FluxControlInpaintPipeline": flux,
    "FluxControlPipeline": flux,
    "FluxFillPipeline": flux,
    "FluxImg2ImgPipeline": flux,
    "FluxInpaintPipeline": flux,
    "FluxKontextInpaintPipeline": flux,
    "IFImg2ImgPipeline": deepfloyd_if,
    "IFInpaintingPipeline": deepfloyd_if,
    "Kandinsky3Img2ImgPipeline": kandinsky3,
    "LatentConsistencyModelImg2ImgPipeline": lcm,
    "QwenImageImg2ImgPipeline": qwen_image,
    "QwenImageInpaintPipeline": qwen_image,
    "SanaSprintImg2ImgPipeline": sana_sprint,
    "StableDiffusion3Img2ImgPipeline": stable_diffusion_3,
    "StableDiffusion3InpaintPipeline": stable_diffusion_3,
    "StableDiffusion3PAGImg2ImgPipeline": stable_diffusion_3,
    "StableDiffusionImg2ImgPipeline": stable_diffusion,
    "StableDiffusionInpaintPipeline": stable_diffusion,
    "StableDiffusionInstructPix2PixPipeline": stable_diffusion,
    "StableDiffusionPAGImg2ImgPipeline": stable_diffusion,
    "StableDiffusionPAGInpaintPipeline": stable_diffusion,
    "StableDiffusionXLImg2ImgPipeline": stable_diffusion_xl,
    "StableDiffusionXLInpaintPipeline": stable_diffusion_xl,
    "StableDiffusionXLInstructPix2PixPipeline": stable_diffusion_xl,
    "StableDiffusionXLPAGImg2ImgPipeline": stable_diffusion_xl,
    "StableDiffusionXLPAGInpaintPipeline": stable_diffusion_xl,
    "ZImageImg2ImgPipeline": z_image,
    "ZImageInpaintPipeline": z_image,
}
BUILDERS |= {name: (builder, {}) for name, builder in ONTO_IMAGES.items()}


def make_loud(pipeline: DiffusionPipeline) -> None:
    """Give all layers of denoiser and text encoders random weights of a size at which the prompt matters."""
    for name, part in pipeline.components.items():
        if not isinstance(part, torch.nn.Module) or name in ("vae", "movq"):
            continue
        for module in part.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                torch.nn.init.xavier_normal_(module.weight, gain=1.5)
                if module.bias is not None:
                    torch.nn.init.normal_(module.bias, std=0.1)
            elif isinstance(module, torch.nn.Embedding):
                torch.nn.init.normal_(module.weight)


def save_loud_generator(name: str, folder: Path) -> str:
    """Save a pipeline of this class, always with the same weights, and return the folder."""
    kind = getattr(diffusers, name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline = BUILDERS[name][0]()
        if type(pipeline) is not kind:
            deeper = {}
            if "PAG" in name and hasattr(pipeline, "transformer"):
                deeper["transformer"] = two_layers(pipeline.transformer)
            pipeline = with_parts_of(kind, pipeline, **deeper, requires_safety_checker=False)
        make_loud(pipeline)
        pipeline.save_pretrained(folder)
    return str(folder)
