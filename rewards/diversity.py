"""`diversity`: how much the pictures of one rewrite differ, by OpenCLIP. Higher is better, 0..1, 0 = all alike.

1 minus the cosine of two pictures' features, at most 1, averaged over all pairs of pictures that were drawn from one
rewrite (a picture's own score is its mean over the others). Needs `images_per_prompt: 2` at least, better 4.
Source: the diversity of BicycleGAN, Zhu et al. 2017 (arXiv 1711.11586), the mean perceptual distance of random pairs,
here with CLIP's features. It asks nothing of the pictures but to differ, and vague rewrites do that best: give it a
small weight beside a reward that reads the prompt.
Default model: OpenAI's ViT-L/14 (MIT licence, 428M parameters, 0.9 GB in bfloat16, 1.7 GB in float32), which it shares
with `clip` at equal settings, as it does the pass over the pictures.
"""

import torch

from brushup.render import default_device
from brushup.rewards.open_clip_backbone import Images, open_clip_backbone
from brushup.rewards.picture_sets import mean_over_others


class Diversity:
    """Scores pictures by their distance from the other pictures of the same rewrite.

    Args:
        model_name, pretrained, precision: an OpenCLIP model, as for `clip`.
        device: default cuda, else mps, else cpu.
        batch_size: pictures encoded at once.

    Raises:
        RuntimeError: OpenCLIP finds no weights (it would go on with random ones).
    """

    takes_pixels = True  # tensors, as the worker has them, without a way through PIL
    least_pictures = 2  # of a rewrite: there is nothing to compare a lone picture with

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

    @torch.inference_mode()
    def __call__(self, images: Images, user_prompts: list[str], prompts: list[str]) -> list[float | None]:
        """A score for each picture; None where it is the only one of its user prompt and rewrite."""
        features = self.backbone.image_features(images, self.batch_size)
        distances = (1 - features @ features.T).clamp(0, 1)
        return mean_over_others(distances.cpu().numpy(), user_prompts, prompts)
