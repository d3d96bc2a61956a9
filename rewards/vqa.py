"""`vqa`: whether a vision-language model says that the image shows what the user asked for. Higher is better, 0..1.

The probability that its answer to 'Does this picture show "..."? Answer yes or no.' starts with yes, among yes and no:
p(yes) / (p(yes) + p(no)), each summed over all tokens that read so, whatever their case and spaces ("yes", " Yes",
"YES"). Source: VQAScore, Lin et al. 2024 (arXiv 2404.01291), which takes p("Yes") alone; dividing by both keeps models
comparable that put some of the probability elsewhere, as on a blank or a mark of emphasis. It sees counts, places and
combinations that CLIP does not, and reads the languages that the model reads.

Default model: Qwen/Qwen2-VL-2B-Instruct (Apache-2.0, 2.2B parameters, about 4.5 GB in bfloat16 plus what a batch
takes). Any image-text model does that has a chat template, and yes and no among its tokens.
"""

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedTokenizerBase

from brushup.common import default_device


QUESTION = 'Does this picture show "{}"? Answer yes or no.'


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
        self.device = device or default_device()
        self.batch_size = batch_size
        self.processor = AutoProcessor.from_pretrained(model_name)
        if not self.processor.chat_template:
            raise ValueError(f"reward_kwargs of 'vqa': {model_name} has no chat template; name an instruction model")
        self.answers = {answer: tokens_that_read(answer, self.processor.tokenizer) for answer in ("yes", "no")}
        for answer, tokens in self.answers.items():
            if not tokens:
                raise ValueError(
                    f"reward_kwargs of 'vqa': the tokenizer of {model_name} has no single token that reads "
                    f"{answer!r}, so the probability of that answer can't be read off; name another model"
                )
        dtype = dtype or ("bfloat16" if self.device.startswith("cuda") else "float32")
        model = AutoModelForImageTextToText.from_pretrained(model_name, dtype=dtype)
        self.model = model.to(self.device).eval()

    def __call__(self, images: list[Image.Image], user_prompts: list[str], prompts: list[str]) -> list[float]:
        """Return the probability of yes for each image and its user prompt; `prompts` (the rewrites) do not count."""
        starts = range(0, len(images), self.batch_size)
        batches = [slice(start, start + self.batch_size) for start in starts]
        return [score for batch in batches for score in self._judge(images[batch], user_prompts[batch])]

    @torch.inference_mode()
    def _judge(self, images: list[Image.Image], user_prompts: list[str]) -> list[float]:
        # A user's prompt may have "<|image_pad|>" in it: with a space it is no control token.
        questions = [QUESTION.format(prompt.replace("<", "< ")) for prompt in user_prompts]
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
            for image, question in zip(images, questions, strict=True)
        ]
        inputs = self.processor.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True, "padding_side": "left"},
        ).to(self.device, self.model.dtype)
        # `generate`, because it gives positions to padded rows, and logits of the last token only.
        output = self.model.generate(
            **inputs,
            max_new_tokens=1,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
            synced_gpus=False,  # else under ZeRO-3 it would wait for the other ranks
        )
        logits = output.logits[0].float()
        yes, no = (logits[:, self.answers[answer]].logsumexp(-1) for answer in ("yes", "no"))
        return (yes - no).sigmoid().tolist()


def tokens_that_read(word: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids of all tokens that decode to `word`, in any case and with any spaces around it."""
    candidates = [token for text, token in tokenizer.get_vocab().items() if word in text.lower()]
    return sorted(token for token in candidates if tokenizer.decode([token]).strip().lower() == word)
