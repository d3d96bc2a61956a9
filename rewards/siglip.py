"""`siglip`: the probability that picture and prompt belong together, by SigLIP. Higher is better, 0..1.

Source: SigLIP, Zhai et al. 2023 (arXiv 2303.15343), and SigLIP 2, Tschannen et al. 2025 (arXiv 2502.14786): the
sigmoid of the cosine times a scale plus a bias, both learnt. Unlike CLIP's cosine it uses the whole range: a vague
prompt can stay under 0.01 for a good picture. SigLIP 2 reads many languages, Korean among them, and 64 tokens.
Default model: SigLIP 2 ViT-L/16 at 256 pixels (Apache-2.0, 882M parameters, 1.8 GB in bfloat16, 3.5 GB in float32).
"""

import torch

from brushup.render import default_device
from brushup.rewards.open_clip_backbone import Images, open_clip_backbone


class SigLIP:
    """Scores pictures against the user's original prompt.

    Args:
        model_name: a SigLIP or SigLIP 2 architecture of OpenCLIP, or `hf-hub:org/name`, or `local-dir:path/to/folder`.
        pretrained: for an architecture: a tag of OpenCLIP ("webli") or a checkpoint file.
        precision: OpenCLIP's: "fp32", "fp16", "bf16", "pure_bf16"; default: pure_bf16 on an NVIDIA GPU, else fp32.
            All but fp32 also round the learnt scale and bias (bf16: by up to 1.6 %), which shifts all probabilities
            alike.
        device: default cuda, else mps, else cpu.
        batch_size: pictures encoded at once.

    Raises:
        RuntimeError: OpenCLIP finds no weights (it would go on with random ones).
        ValueError: the model was not trained with a sigmoid.
    """

    takes_pixels = True  # tensors, as the worker has them, without a way through PIL

    def __init__(
        self,
        model_name: str = "ViT-L-16-SigLIP2-256",
        pretrained: str | None = "webli",
        precision: str | None = None,
        device: str | None = None,
        batch_size: int = 64,
    ):
        self.batch_size = batch_size
        self.backbone = open_clip_backbone(model_name, pretrained, precision, device or default_device())
        if self.backbone.model.logit_bias is None:
            raise ValueError(
                f"reward_kwargs of 'siglip': {model_name} is no SigLIP model (it has no bias for its logits); "
                "the reward 'clip' takes it"
            )

    @torch.inference_mode()
    def __call__(self, images: Images, user_prompts: list[str], prompts: list[str]) -> list[float]:
        """The probability for each picture and its user prompt; `prompts` (the rewrites) do not count."""
        cosines = self.backbone.cosines(images, user_prompts, self.batch_size)
        model = self.backbone.model
        return (cosines * model.logit_scale.float().exp() + model.logit_bias.float()).sigmoid().tolist()
