"""`diversity`: how much the images of one rewrite differ, by OpenCLIP. Higher is better, 0..1, 0 = all alike.

1 minus the cosine of two images' features, at most 1, averaged over all pairs of images that were rendered from one
rewrite (an image's own score is its mean over the others). Needs `images_per_prompt: 2` at least, better 4.
Source: the diversity of BicycleGAN, Zhu et al. 2017 (arXiv 1711.11586), the mean perceptual distance of random pairs,
here with CLIP's features. It asks nothing of the images but to differ, and vague rewrites do that best: give it a
small weight beside a reward that reads the prompt.
Default model: OpenAI's ViT-L/14 (MIT licence, 428M parameters, 0.9 GB in bfloat16, 1.7 GB in float32). With equal
settings it shares the model, and the pass over the images, with `clip`.
"""

import torch

from brushup.rewards.image_sets import mean_over_others
from brushup.rewards.open_clip_backbone import Images, OpenClipReward


class Diversity(OpenClipReward):
    """A score of images by their distance from the other images of the same rewrite.

    Arguments as for `OpenClipReward`.
    """

    least_images = 2  # of a rewrite: a lone image has nothing to be compared with

    @torch.inference_mode()
    def __call__(self, images: Images, user_prompts: list[str], prompts: list[str]) -> list[float | None]:
        """Return a score for each image; None where it is the only one of its user prompt and rewrite."""
        features = self.backbone.image_features(images, self.batch_size)
        distances = (1 - features @ features.T).clamp(0, 1)
        return mean_over_others(distances.cpu().numpy(), user_prompts, prompts)
