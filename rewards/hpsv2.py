"""`hpsv2`: which image people prefer for the prompt, by HPS v2.1. Higher is better, -1..1, in practice 0.2 to 0.35.

Source: Human Preference Score v2, Wu et al. 2023 (arXiv 2306.09341): the cosine of a CLIP ViT-H/14 that was trained
on 798k choices between images. Published figures are these times 100. It mixes likeness to the prompt with looks.
Images that are not square are padded with black, as its authors do. English only, 77 tokens.
Model: xswu/HPSv2 (Apache-2.0, 986M parameters, 2 GB in bfloat16, 4 GB in float32).
"""

from brushup.rewards.checkpoint import find_checkpoint
from brushup.rewards.open_clip_backbone import Images, OpenClipReward


class HPSv2(OpenClipReward):
    """A score of images against the user's original prompt.

    Args:
        pretrained: the checkpoint: a file, or `org/name/file` on the Hub ("xswu/HPSv2/HPS_v2_compressed.pt" is v2.0).
        model_name: its OpenCLIP architecture.
        precision, device, batch_size: as for `OpenClipReward`.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """

    resize_mode = "longest"

    def __init__(
        self,
        pretrained: str = "xswu/HPSv2/HPS_v2.1_compressed.pt",
        model_name: str = "ViT-H-14",
        precision: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ):
        weights = find_checkpoint(pretrained, "hpsv2: {pretrained: ...}")
        super().__init__(model_name, weights, precision, device, batch_size)

    def __call__(self, images: Images, user_prompts: list[str], prompts: list[str]) -> list[float]:
        """Return the cosine of each image and its user prompt; `prompts` (the rewrites) do not count."""
        return self.backbone.cosines(images, user_prompts, self.batch_size).tolist()
