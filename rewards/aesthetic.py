"""`aesthetic`: how beautiful people find the image, whatever was asked for. Higher is better, made for 0.1..1.

Source: the LAION aesthetic predictor V2 (github.com/christophschuhmann/improved-aesthetic-predictor; LAION-5B,
Schuhmann et al. 2022, arXiv 2210.08402), which predicts people's marks of 1 to 10 from CLIP's image features; here
divided by 10. Generated images get 0.45 to 0.75. It looks at no text: alone it rewards any pretty image, so use
it beside a reward that does. (V1 is one linear layer, trained on less; papers report V2.)
Model: the head "sac+logos+ava1-l14-linearMSE" (Apache-2.0, 1M parameters), as trl-lib/ddpo-aesthetic-predictor has
it, on OpenAI's ViT-L/14 (MIT, 428M parameters, 0.9 GB in bfloat16, 1.7 GB in float32), which it shares with `clip` at
equal settings.
"""

import torch

from brushup.common import default_device
from brushup.rewards.checkpoint import find_checkpoint, linear_head, read_checkpoint
from brushup.rewards.open_clip_backbone import Images, OpenClipReward


class Aesthetic(OpenClipReward):
    """A score of images by themselves.

    Args:
        head: the predictor's weights: a file, or `org/name/file` on the Hub.
        model_name, pretrained: the OpenCLIP model that the head was trained on, as for `OpenClipReward`.
        precision, device, batch_size: as for `OpenClipReward`.

    Raises:
        FileNotFoundError: there is no such head.
        ValueError: the head is for another model.
        RuntimeError: OpenCLIP finds no weights (it would go on with random ones).
    """

    def __init__(
        self,
        head: str = "trl-lib/ddpo-aesthetic-predictor/aesthetic-model.pth",
        model_name: str = "ViT-L-14",
        pretrained: str | None = "openai",
        precision: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ):
        path = find_checkpoint(head, "aesthetic: {head: ...}")
        weights = read_checkpoint(path, needs="layers.0.weight")
        self.head = linear_head(weights, "layers.").to(device or default_device())
        super().__init__(model_name, pretrained, precision, device, batch_size)
        width = self.backbone.text_features([""], 1).shape[-1]
        if width != self.head[0].in_features:
            raise ValueError(
                f"reward_kwargs of 'aesthetic': the head reads {self.head[0].in_features} features and {model_name} "
                f"has {width}; name the model that the head was trained on"
            )

    @torch.inference_mode()
    def __call__(self, images: Images, user_prompts: list[str], prompts: list[str]) -> list[float]:
        """Return a tenth of the mark of each image; the prompts do not count."""
        return (self.head(self.backbone.image_features(images, self.batch_size)).squeeze(-1) / 10).tolist()
