"""`clip`: does the picture show what the user asked for, by OpenCLIP's cosine similarity. Higher is better, 0..1.

Source: CLIPScore, Hessel et al. 2021 (arXiv 2104.08718), here without its factor 2.5: max(cosine, 0). Trained CLIP
models give 0.15 to 0.35 for real pictures; GRPO looks at differences within a group, so the scale does not matter.
Default model: OpenAI's ViT-L/14 (MIT licence, 428M parameters, 0.9 GB in bfloat16, 1.7 GB in float32). CLIP reads 77
tokens and is nearly blind to spatial relations, and reads English only: for prompts in other languages name a
multilingual model, such as xlm-roberta-large-ViT-H-14 (MIT licence, 1.2B parameters).
"""

from brushup.render import default_device
from brushup.rewards.open_clip_backbone import Images, open_clip_backbone


class ClipReward:
    """Scores pictures against the user's original prompt.

    Args:
        model_name: an OpenCLIP architecture ("ViT-L-14"), or `hf-hub:org/name`, or `local-dir:path/to/folder`.
        pretrained: for an architecture: a tag of OpenCLIP ("openai") or a checkpoint file.
        precision: OpenCLIP's: "fp32", "fp16", "bf16", "pure_bf16"; default: pure_bf16 on an NVIDIA GPU, else fp32.
        device: default cuda, else mps, else cpu.
        batch_size: pictures encoded at once.

    Raises:
        RuntimeError: OpenCLIP finds no weights (it would go on with random ones).
    """

    takes_pixels = True  # tensors, as the worker has them, without a way through PIL

    def __init__(
        self,
        model_name: str = "ViT-L-14",
        pretrained: str | None = "openai",
        precision: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ):
        self.batch_size = batch_size
        self.backbone = open_clip_backbone(model_name, pretrained, precision, device or default_device())

    def __call__(self, images: Images, user_prompts: list[str], prompts: list[str]) -> list[float]:
        """max(cosine, 0) of each picture and its user prompt; `prompts` (the rewrites) do not count."""
        return self.backbone.cosines(images, user_prompts, self.batch_size).clamp(0, 1).tolist()
