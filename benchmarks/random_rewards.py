"""Image rewards of their real size with random weights: what they cost can be measured without their checkpoints.

Text is tokenised as the real ones do where the tokenizer is in a package, else by one of the same length.
"""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from unittest.mock import patch

import torch

from brushup.rewards import load_reward


if TYPE_CHECKING:
    from transformers import Qwen2VLConfig

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


def load_random(name: str, device: str, **settings) -> Callable:
    """The reward of that name on `device` with these settings of its own; those that need no download as they are."""
    return BUILDERS.get(name, load_reward)(name, device=device, **settings)


def open_clip_reward(name: str, device: str, **settings) -> Callable:
    """`clip`, `siglip`, `hpsv2`, `aesthetic`, `diversity`: OpenCLIP's model without weights."""
    import open_clip

    def create(model_name, pretrained, **settings):
        model, _, preprocess = open_clip.create_model_and_transforms(model_name, pretrained=None, **settings)
        return model, preprocess

    def get_tokenizer(model_name):
        if "SigLIP" in model_name:  # SigLIP's is on the Hub; 64 tokens
            return lambda texts: torch.randint(1, 1000, (len(texts), 64))
        return open_clip.tokenizer.SimpleTokenizer()

    with (
        patch.object(open_clip, "create_model_from_pretrained", create),
        patch.object(open_clip, "get_tokenizer", get_tokenizer),
        patch("brushup.rewards.hpsv2.find_checkpoint", lambda *_: None),
        patch("brushup.rewards.aesthetic.find_checkpoint", lambda *_: None),
        patch("brushup.rewards.aesthetic.read_checkpoint", lambda *_, **__: head_weights(768)),
    ):
        return load_reward(name, device=device, **settings)


def head_weights(width: int, prefix: str = "layers.") -> dict[str, torch.Tensor]:
    """Weights of the head of the aesthetic predictor and of ImageReward."""
    widths, weights = [width, 1024, 128, 64, 16, 1], {}
    for number, before, after in zip((0, 2, 4, 6, 7), widths, widths[1:], strict=False):
        weights[f"{prefix}{number}.weight"] = torch.randn(after, before) / before**0.5
        weights[f"{prefix}{number}.bias"] = torch.zeros(after)
    return weights


def pickscore(name: str, device: str) -> Callable:
    """A CLIP ViT-H/14 of transformers."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    text = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    vision = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
    config = CLIPConfig(
        text_config={**text, "hidden_act": "gelu", "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config={**vision, "hidden_act": "gelu", "patch_size": 14},
        projection_dim=1024,
    )
    tokenizer = CLIPTokenizer.from_pretrained(TINY_WORLD / "generator" / "tokenizer", model_max_length=77)
    processor = CLIPProcessor(CLIPImageProcessor(), tokenizer)
    with (
        patch.object(CLIPModel, "from_pretrained", lambda *_, **__: (CLIPModel(config), {"missing_keys": []})),
        patch.object(CLIPProcessor, "from_pretrained", lambda *_, **__: processor),
    ):
        return load_reward(name, device=device)


def image_reward(name: str, device: str) -> Callable:
    """BLIP with a ViT-L/16 at 224 pixels and a BERT that attends to it."""
    import timm
    from transformers import AutoTokenizer, BertConfig, BertModel, BertTokenizer

    vision = timm.models.VisionTransformer(224, 16, embed_dim=1024, depth=24, num_heads=16, num_classes=0)
    config = BertConfig(vocab_size=30524, is_decoder=True, add_cross_attention=True)
    text = BertModel(config, add_pooling_layer=False).state_dict()
    for layer in range(config.num_hidden_layers):  # BERT's own width is 768, the pictures' is 1024
        for kind in ("key", "value"):
            text[f"encoder.layer.{layer}.crossattention.self.{kind}.weight"] = torch.randn(768, 1024) / 32
    del text["embeddings.token_type_embeddings.weight"]  # BLIP has none
    weights = head_weights(768, "mlp.layers.")
    weights |= {f"blip.visual_encoder.{key}": weight for key, weight in vision.state_dict().items()}
    weights |= {f"blip.text_encoder.{key}": weight for key, weight in text.items()}
    with TemporaryDirectory() as folder:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
        Path(folder, "vocab.txt").write_text("\n".join([*words, *(f"##{letter}" for letter in words[5:])]))
        tokenizer = BertTokenizer.from_pretrained(folder)
    with (
        patch("brushup.rewards.image_reward.find_checkpoint", lambda *_: None),
        patch("brushup.rewards.image_reward.read_checkpoint", lambda *_, **__: weights),
        patch.object(AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer),
    ):
        return load_reward(name, device=device)


def qwen2_vl_config(size: str) -> "Qwen2VLConfig":
    """Of the Qwen2-VL with so many parameters, "2B" or "7B", with the tiny world's special tokens; or "tiny"."""
    from transformers import Qwen2VLConfig

    tiny = Qwen2VLConfig.from_pretrained(TINY_WORLD / "policy")
    if size == "tiny":
        return tiny
    text = {name: value for name, value in QWEN2_VL[size].items() if name != "tie_word_embeddings"}
    return Qwen2VLConfig(
        text_config={
            **text,
            "num_hidden_layers": 28,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
        },
        vision_config={
            "depth": 32,
            "embed_dim": 1280,
            "hidden_size": text["hidden_size"],
            "num_heads": 16,
            "mlp_ratio": 4,
            "patch_size": 14,
        },
        tie_word_embeddings=QWEN2_VL[size]["tie_word_embeddings"],
        **{key: number for key, number in tiny.to_dict().items() if key.endswith("_token_id")},
    )


def vqa(name: str, device: str) -> Callable:
    """A Qwen2-VL-2B with the tiny world's tokenizer; pictures of 512x512 become 324 tokens, as with the real one."""
    from transformers import (
        AutoModelForImageTextToText,
        AutoProcessor,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
    )

    processor = AutoProcessor.from_pretrained(TINY_WORLD / "policy")
    processor.image_processor = Qwen2VLImageProcessor()
    processor.tokenizer.add_tokens(["yes", "no"])
    config = qwen2_vl_config("2B")

    def create(*_, dtype: str, **__):
        return Qwen2VLForConditionalGeneration._from_config(config, dtype=getattr(torch, dtype))

    with (
        patch.object(AutoProcessor, "from_pretrained", lambda *_, **__: processor),
        patch.object(AutoModelForImageTextToText, "from_pretrained", create),
    ):
        return load_reward(name, device=device)


BUILDERS = {
    "aesthetic": open_clip_reward,
    "clip": open_clip_reward,
    "diversity": open_clip_reward,
    "hpsv2": open_clip_reward,
    "image_reward": image_reward,
    "pickscore": pickscore,
    "siglip": open_clip_reward,
    "vqa": vqa,
}
