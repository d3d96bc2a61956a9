"""The enhancer: asks a policy for rewrites, with the template and the parser that it was trained with."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from brushup.prompts import build_messages, parse_answer


@dataclass(frozen=True)
class Enhancement:
    """A rewrite: `prompt` is what to draw; `fell_back` if the answer was malformed and it is the user's own prompt."""

    user_prompt: str
    prompt: str
    fell_back: bool


def vision_placeholder_ids(config: object) -> list[int]:
    """Ids of the tokens that stand for pictures and videos; a policy that writes one breaks its own next forward."""
    ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    return [token for token in ids if token is not None]


class PromptEnhancer:
    """Rewrites prompts with a policy.

    Args:
        model: an image-text or a text model, with or without an adapter.
        processor: its processor (image-text) or tokenizer (text).
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin | PreTrainedTokenizerBase):
        self.model = model
        self.processor = processor

    @torch.no_grad()  # not inference_mode: FSDP2 would go on with its tensors in training
    def enhance(
        self,
        user_prompts: Sequence[str],
        max_new_tokens: int = 128,
        temperature: float = 0.7,
        seed: int = 0,
        batch_size: int = 32,
        images: Sequence[Image.Image | None] | None = None,
    ) -> list[Enhancement]:
        """A rewrite of each prompt.

        Args:
            images: a picture beside each prompt, or None; for image-text policies.
            temperature: of the sampling; 0 takes the likeliest token each time.
            seed: of the sampling; the same seed, prompts and batch size give the same rewrites.
        """
        enhancements = []
        images = images or [None] * len(user_prompts)
        was_training = self.model.training
        self.model.eval()
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            for start in range(0, len(user_prompts), batch_size):
                some = user_prompts[start : start + batch_size]
                answers = self._answer(some, images[start : start + batch_size], max_new_tokens, temperature)
                for user_prompt, answer in zip(some, answers, strict=True):
                    enhancements.append(Enhancement(user_prompt, answer or user_prompt, fell_back=answer is None))
        self.model.train(was_training)
        return enhancements

    def _answer(
        self,
        user_prompts: Sequence[str],
        images: Sequence[Image.Image | None],
        max_new_tokens: int,
        temperature: float,
    ) -> list[str | None]:
        messages = [build_messages(prompt) for prompt in user_prompts]
        pictures = {}
        if isinstance(self.processor, ProcessorMixin):
            tokenizer = self.processor.tokenizer
            messages = [
                prepare_multimodal_messages(conversation, images=[image] if image else None)
                for conversation, image in zip(messages, images, strict=True)
            ]
            pictures = {"images": [image for image in images if image] or None}
        else:
            tokenizer = self.processor
        tokenizer.padding_side = "left"
        texts = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        inputs = self.processor(
            text=texts, **pictures, padding=True, add_special_tokens=False, return_tensors="pt"
        ).to(self.model.device)
        declared = self.model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None}
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        generated = self.model.generate(
            **inputs,
            **(sampling if temperature else {"do_sample": False}),
            max_new_tokens=max_new_tokens,
            eos_token_id=list(ends),
            suppress_tokens=vision_placeholder_ids(self.model.config) or None,
        )[:, inputs["input_ids"].shape[1] :]
        finished = torch.isin(generated, torch.tensor(list(ends), device=generated.device)).any(dim=1).tolist()
        texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [parse_answer(text, done) for text, done in zip(texts, finished, strict=True)]
