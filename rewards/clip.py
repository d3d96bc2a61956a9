"""`clip`: how well the image shows what the user asked for, by OpenCLIP's cosine similarity. Higher is better, 0..1.

Source: CLIPScore, Hessel et al. 2021 (arXiv 2104.08718), here without its factor 2.5: max(cosine, 0). Trained CLIP
models give 0.15 to 0.35 for real images; GRPO looks at differences within a group, so the scale does not matter.
Default model: OpenAI's ViT-L/14 (MIT licence, 428M parameters, 0.9 GB in bfloat16, 1.7 GB in float32). CLIP reads 77
tokens and is nearly blind to spatial relations, and reads English only: for prompts in other languages name a
multilingual model, such as xlm-roberta-large-ViT-H-14 (MIT licence, 1.2B parameters).
"""

from brushup.rewards.open_clip_backbone import Images, OpenClipReward


class ClipReward(OpenClipReward):
    """A score of images against the user's original prompt; arguments as for `OpenClipReward`."""

    def __call__(self, images: Images, user_prompts: list[str], prompts: list[str]) -> list[float]:
        """Return max(cosine, 0) of each image and its user prompt; `prompts` (the rewrites) do not count."""
        return self.backbone.cosines(images, user_prompts, self.batch_size).clamp(0, 1).tolist()
