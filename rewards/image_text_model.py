"""An image-text model that is asked about images: the probabilities of the first token of its answer."""

from collections import defaultdict
from collections.abc import Sequence

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from brushup.common import default_device


DOES_IT_SHOW = 'Does this picture show "{}"? Answer yes or no.'
# The tokens of the expected answer, and of all possible ones; None: every token.
Answer = tuple[list[int], list[int] | None]


class ImageTextModel:
    """An image-text model of transformers, with its processor.

    Args:
        reward: the name of the reward that loads it, for errors.
        model_name: Hub id or folder.
        dtype: name of the torch dtype; default bfloat16 on cuda, else float32.
        device: default cuda, else mps, else cpu.
        batch_size: images asked about at once.

    Raises:
        ValueError: the model has no chat template.
    """

    def __init__(self, reward: str, model_name: str, dtype: str | None, device: str | None, batch_size: int):
        self.reward = reward
        self.model_name = model_name
        self.device = device or default_device()
        self.batch_size = batch_size
        self.processor = AutoProcessor.from_pretrained(model_name)
        if not self.processor.chat_template:
            raise ValueError(
                f"reward_kwargs of {reward!r}: {model_name} has no chat template; name an instruction model"
            )
        dtype = dtype or ("bfloat16" if self.device.startswith("cuda") else "float32")
        model = AutoModelForImageTextToText.from_pretrained(model_name, dtype=dtype)
        self.model = model.to(self.device).eval()
        self._spelled: dict[str, list[int]] = defaultdict(list)  # the tokens that decode to a word

    def tokens(self, word: str) -> list[int]:
        """Return the ids of all tokens that read `word`.

        Raises:
            ValueError: there is none, so that the answer's probability can't be read off.
        """
        tokens = self.tokens_that_read([word])
        if not tokens:
            raise ValueError(
                f"reward_kwargs of {self.reward!r}: the tokenizer of {self.model_name} has no single token that reads "
                f"{word!r}, so the probability of that answer can't be read off; name another model"
            )
        return tokens

    def tokens_that_read(self, words: Sequence[str]) -> list[int]:
        """Return the ids of all tokens that decode to one of the words, in any case and with any spaces around it."""
        if not self._spelled:
            for token in self.processor.tokenizer.get_vocab().values():
                self._spelled[self.processor.tokenizer.decode([token]).strip().lower()].append(token)
        return sorted(token for word in words for token in self._spelled.get(word, ()))

    def first_tokens(self, words: Sequence[str]) -> list[int]:
        """Return the ids of all tokens that read one of the words; if there is none, of those that begin the first."""
        tokenizer, word = self.processor.tokenizer, words[0]
        spellings = [spelling for text in (word, word.capitalize()) for spelling in (text, f" {text}")]
        begins = {tokenizer(spelling, add_special_tokens=False).input_ids[0] for spelling in spellings}
        return self.tokens_that_read(words) or sorted(begins)

    def probabilities(self, images: Sequence[Image.Image], questions: Sequence[tuple[str, Answer]]) -> list[float]:
        """Return the probability of each question's expected answer among the possible ones, 0..1.

        Args:
            images: of each question.
            questions: each with its answer. They are asked in batches, short ones together. A "<" in them gets a
                space, so that "<|image_pad|>" in a user's prompt is no control token.
        """
        order = sorted(range(len(questions)), key=lambda index: len(questions[index][0]))
        found = [0.0] * len(order)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            logits = self._first_logits([images[index] for index in part], [questions[index][0] for index in part])
            for row, index in zip(logits, part, strict=True):
                expected, possible = questions[index][1]
                among = row[possible] if possible else row
                found[index] = (row[expected].logsumexp(-1) - among.logsumexp(-1)).exp().item()
        return found

    @torch.inference_mode()
    def _first_logits(self, images: list[Image.Image], questions: list[str]) -> torch.Tensor:
        """Return the logits of the first token of each answer, (questions, vocabulary)."""
        texts = [question.replace("<", "< ") for question in questions]
        conversations = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
            for image, text in zip(images, texts, strict=True)
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
        return output.logits[0].float()
