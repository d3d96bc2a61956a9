"""`siglip`: the probability that image and prompt belong together, by SigLIP. Higher is better, 0..1.

Source: SigLIP, Zhai et al. 2023 (arXiv 2303.15343), and SigLIP 2, Tschannen et al. 2025 (arXiv 2502.14786): the
sigmoid of the cosine times a scale plus a bias, both learnt. Unlike CLIP's cosine it uses the whole range: a vague
prompt can stay under 0.01 for a good image. SigLIP 2 reads many languages, Korean among them, and 64 tokens.
Default model: SigLIP 2 ViT-L/16 at 256 pixels (Apache-2.0, 882M parameters, 1.8 GB in bfloat16, 3.5 GB in float32).
"""

import torch

from brushup.rewards.open_clip_backbone import Images, OpenClipReward


class SigLIP(OpenClipReward):
    """A score of images against the user's original prompt.

    Args:
        model_name: a SigLIP or SigLIP 2 architecture of OpenCLIP, or `hf-hub:org/name`, or `local-dir:path/to/folder`.
        precision: all but fp32 also round the learnt scale and bias (bf16: by up to 1.6 %), which shifts all
            probabilities alike.
        pretrained, device, batch_size: as for `OpenClipReward`.

    Raises:
        RuntimeError: OpenCLIP finds no weights (it would go on with random ones).
        ValueError: the model was not trained with a sigmoid.
    """

    def __init__(
        self,
        model_name: str = "ViT-L-16-SigLIP2-256",
        pretrained: str | None = "webli",
        precision: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ):
        super().__init__(model_name, pretrained, precision, device, batch_size)
        if self.backbone.model.logit_bias is None:
            raise ValueError(
                f"reward_kwargs of 'siglip': {model_name} is no SigLIP model (it has no bias for its logits); "
                "the reward 'clip' takes it"
            )

    @torch.inference_mode()
    def __call__(self, images: Images, user_prompts: list[str], prompts: list[str]) -> list[float]:
        """Return the probability for each image and its user prompt; `prompts` (the rewrites) do not count."""
        cosines = self.backbone.cosines(images, user_prompts, self.batch_size)
        model = self.backbone.model
        return (cosines * model.logit_scale.float().exp() + model.logit_bias.float()).sigmoid().tolist()
