"""`vqa`: whether a vision-language model says that the image shows what the user asked for. Higher is better, 0..1.

The probability that its answer to 'Does this picture show "..."? Answer yes or no.' starts with yes, among yes and no:
p(yes) / (p(yes) + p(no)), each summed over all tokens that read so, whatever their case and spaces ("yes", " Yes",
"YES"). Source: VQAScore, Lin et al. 2024 (arXiv 2404.01291), which takes p("Yes") alone; dividing by both keeps models
comparable that put some of the probability elsewhere, as on a blank or a mark of emphasis. It sees counts, places and
combinations that CLIP does not, and reads the languages that the model reads.

Default model: Qwen/Qwen2-VL-2B-Instruct (Apache-2.0, 2.2B parameters, about 4.5 GB in bfloat16 plus what a batch
takes). Any image-text model does that has a chat template, and yes and no among its tokens.
"""

from PIL import Image

from brushup.rewards.image_text_model import DOES_IT_SHOW, ImageTextModel


class VQAReward:
    """A score of images against the user's original prompt.

    Args:
        model_name: an image-text model of transformers: Hub id or folder.
        dtype: name of the torch dtype; default bfloat16 on cuda, else float32.
        device: default cuda, else mps, else cpu.
        batch_size: images judged at once.

    Raises:
        ValueError: the model's tokenizer has no single token for yes or for no, or the model has no chat template.
    """

    def __init__(
        self,
        model_name: str = "Qwen/Qwen2-VL-2B-Instruct",
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int = 16,
    ):
        self.model = ImageTextModel("vqa", model_name, dtype, device, batch_size)
        yes, no = self.model.tokens("yes"), self.model.tokens("no")
        self.yes = (yes, yes + no)

    def __call__(self, images: list[Image.Image], user_prompts: list[str], prompts: list[str]) -> list[float]:
        """Return the probability of yes for each image and its user prompt; `prompts` (the rewrites) do not count."""
        return self.model.probabilities(images, [(DOES_IT_SHOW.format(prompt), self.yes) for prompt in user_prompts])
