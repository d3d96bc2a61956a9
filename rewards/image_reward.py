"""`image_reward`: which image people prefer for the prompt, by ImageReward. Higher is better, 0..1, 0.5 is average.

Source: ImageReward, Xu et al. 2023 (arXiv 2304.05977): BLIP reads the prompt while it looks at the image, and a head
trained on 137k comparisons gives a mark r (published figures: about -2..2, mean 0, deviation 1). Here it is
sigmoid(r), which keeps the order: a malformed rewrite has reward 0 in training, and no image should have less.
English only, 35 tokens.
Model: THUDM/ImageReward (Apache-2.0; BLIP ViT-L: BSD-3; 450M parameters, 0.9 GB in bfloat16, 1.8 GB in float32), run
by the BLIP of transformers.
"""

import torch
from PIL import Image

from brushup.common import default_device
from brushup.rewards.checkpoint import find_checkpoint, linear_head, read_checkpoint


MEAN, DEVIATION = 0.16717362830052426, 1.0333394966054072  # of the head's output, from ImageReward's code
MAX_TOKENS = 35  # what it was trained with
HEAD_WIDTH = 64  # of each attention head in ViT and BERT of all sizes

VISION_NAMES = {  # BLIP's own names of the weights, in order, and those of transformers
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "blocks.": "encoder.layers.",
    ".attn.proj.": ".self_attn.projection.",
    ".attn.": ".self_attn.",
    ".norm1.": ".layer_norm1.",
    ".norm2.": ".layer_norm2.",
}


class ImageReward:
    """A score of images against the user's original prompt.

    Args:
        pretrained: ImageReward's checkpoint: a file, or `org/name/file` on the Hub.
        tokenizer: BERT's, Hub id or folder.
        dtype: "float32", "float16", "bfloat16"; default: bfloat16 on an NVIDIA GPU, else float32.
        device: default cuda, else mps, else cpu.
        batch_size: images scored at once.

    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: the checkpoint is not ImageReward's.
        OSError: there is no such tokenizer.
    """

    def __init__(
        self,
        pretrained: str = "THUDM/ImageReward/ImageReward.pt",
        tokenizer: str = "google-bert/bert-base-uncased",
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ):
        import open_clip
        from transformers import AutoTokenizer

        self.device = device or default_device()
        self.batch_size = batch_size
        self.dtype = getattr(torch, dtype or ("bfloat16" if torch.device(self.device).type == "cuda" else "float32"))
        path = find_checkpoint(pretrained, "image_reward: {pretrained: ...}")
        weights = read_checkpoint(path, needs="blip.visual_encoder.cls_token")
        self.vision = load_vision(part_of(weights, "blip.visual_encoder.")).to(self.device, self.dtype).eval()
        self.text = load_text(part_of(weights, "blip.text_encoder.")).to(self.device, self.dtype).eval()
        self.head = linear_head(weights, "mlp.layers.").to(self.device)
        self.tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self.preprocess = open_clip.image_transform(self.vision.config.image_size, is_train=False)  # CLIP's, as theirs

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image], user_prompts: list[str], prompts: list[str]) -> list[float]:
        """Return the sigmoid of the mark of each image for its user prompt; `prompts` (the rewrites) do not count."""
        starts = range(0, len(images), self.batch_size)
        batches = (slice(start, start + self.batch_size) for start in starts)
        marks = torch.cat([self._marks(images[batch], user_prompts[batch]) for batch in batches])
        return marks.sigmoid().tolist()

    def _marks(self, images: list[Image.Image], texts: list[str]) -> torch.Tensor:
        """Return ImageReward's marks r, (len(images),), float32."""
        pixels = torch.stack([self.preprocess(image) for image in images]).to(self.device, self.dtype)
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
        tokens = tokens.to(self.device)
        states = self.text(
            tokens.input_ids,
            attention_mask=tokens.attention_mask,
            encoder_hidden_states=self.vision(pixels).last_hidden_state,
        ).last_hidden_state
        return (self.head(states[:, 0].float()).squeeze(-1) - MEAN) / DEVIATION


def part_of(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Return the weights whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def load_vision(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Return BLIP's image encoder, its sizes read off the weights."""
    from transformers import BlipVisionConfig, BlipVisionModel

    width, patch = weights["patch_embed.proj.weight"].shape[0], weights["patch_embed.proj.weight"].shape[-1]
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=weights["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=sum(name.endswith(".mlp.fc1.weight") for name in weights),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=patch * round((weights["pos_embed"].shape[1] - 1) ** 0.5),
        patch_size=patch,
        layer_norm_eps=1e-6,  # BLIP's; transformers has 1e-5
    )
    renamed = {}
    for name, weight in weights.items():
        for theirs, ours in VISION_NAMES.items():
            name = name.replace(theirs, ours)
        renamed[f"post_layernorm.{name[5:]}" if name.startswith("norm.") else name] = weight
    model = BlipVisionModel(config)
    model.load_state_dict(renamed)
    return model


def load_text(weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """Return BLIP's text encoder, which looks at the image, its sizes read off the weights."""
    from transformers import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    vocabulary, width = weights["embeddings.word_embeddings.weight"].shape
    config = BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=weights["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=weights["encoder.layer.0.intermediate.dense.weight"].shape[0],
        num_hidden_layers=sum(name.endswith(".intermediate.dense.weight") for name in weights),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=weights["embeddings.position_embeddings.weight"].shape[0],
    )
    model = BlipTextModel(config, add_pooling_layer=False)
    model.load_state_dict({name: weight for name, weight in weights.items() if name != "embeddings.position_ids"})
    return model
