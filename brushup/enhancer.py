"""The enhancer: asks a policy for rewrites, with the template and the parser that it was trained with."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoProcessor, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.utils import create_model_from_path

from brushup.policy import is_adapter, load_adapter
from brushup.prompts import build_messages, parse_answer
from brushup.render import default_device


@dataclass(frozen=True)
class Enhancement:
    """A rewrite: `prompt` is what to draw; `fell_back` if the answer was malformed and it is the user's own prompt.

    `answer` is all that the policy wrote.
    """

    user_prompt: str
    prompt: str
    fell_back: bool
    answer: str


def vision_placeholder_ids(config: object) -> list[int]:
    """Ids of the tokens that stand for pictures and videos; a policy that writes one breaks its own next forward."""
    ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    return [token for token in ids if token is not None]


class PromptEnhancer:
    """Rewrites prompts with a policy.

        enhancer = PromptEnhancer.from_pretrained("runs/tiny_cpu")
        enhancer.enhance("crimson disk, huge").prompt

    Args:
        model: an image-text or a text model, with or without an adapter.
        processor: its processor (image-text) or tokenizer (text).
    """

    def __init__(self, model: PreTrainedModel | PeftModel, processor: ProcessorMixin | PreTrainedTokenizerBase):
        self.model = model
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls, model_or_adapter: str | Path, device: str | None = None, dtype: torch.dtype | str | None = None
    ) -> "PromptEnhancer":
        """The enhancer of a Hub id or a folder; an adapter's base model is the one that it names.

        Args:
            device: default cuda, else mps, else cpu.
            dtype: default bfloat16 on CUDA, else float32.

        Raises:
            OSError: there is no such model, or an adapter's base model is not found.
            ValueError: an adapter does not fit its base model.
        """
        name, device = str(model_or_adapter), device or default_device()
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        if is_adapter(name):
            model = load_adapter(name, dtype=dtype, device_map=device)
        else:
            try:
                model = create_model_from_path(name, dtype=dtype, device_map=device)
            except (OSError, ValueError) as error:  # the latter: a folder with something else in it
                raise OSError(f"{name!r} is no folder here with a model, and no model on the Hub: {error}") from error
        try:
            processor = AutoProcessor.from_pretrained(name)
        except (OSError, ValueError):  # an adapter that was saved alone
            processor = AutoProcessor.from_pretrained(model.base_model.name_or_path)
        return cls(model, processor)

    def merge_and_save(self, folder: str | Path) -> None:
        """Writes a plain checkpoint, an adapter merged into its base model, for `vllm serve` or transformers.

        The enhancer goes on with the merged model.
        """
        if isinstance(self.model, PeftModel):
            self.model = self.model.merge_and_unload(safe_merge=True)
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    @torch.no_grad()  # not inference_mode: FSDP2 would go on with its tensors in training
    def enhance(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        seed: int = 0,
        image: Image.Image | Sequence[Image.Image | None] | None = None,
        batch_size: int = 32,
    ) -> Enhancement | list[Enhancement] | list[list[Enhancement]]:
        """Rewrites of the user's prompt, or of each of several.

        Args:
            n: rewrites of each prompt.
            max_new_tokens: an answer that does not end within them is malformed.
            temperature: of the sampling; 0, the default for one rewrite, takes the likeliest token each time, as
                validation does; the default for several is 0.7.
            seed: of the sampling; the same seed, prompts and batch size give the same rewrites.
            image: a reference picture beside the prompt, for image-text policies; of several prompts one each, or
                None for those without.
            batch_size: answers written at once.

        Returns:
            An `Enhancement` for a prompt, a list of them for several; with `n` > 1 a list of `n` in place of each.

        Raises:
            ValueError: there is an empty prompt, `n` < 1, not as many images as prompts, or an image for a policy
                that reads text only.
        """
        temperature = (0.7 if n > 1 else 0.0) if temperature is None else temperature
        user_prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        images = list(image) if isinstance(image, Sequence) else [image] * len(user_prompts)
        if n < 1 or len(images) != len(user_prompts) or not all(asked.strip() for asked in user_prompts):
            raise ValueError(
                f"wanted: n >= 1, prompts that are not empty, and an image for each or none; got n={n}, "
                f"{len(user_prompts)} prompts ({sum(not asked.strip() for asked in user_prompts)} empty), "
                f"{len(images)} images"
            )
        if any(images) and not isinstance(self.processor, ProcessorMixin):
            raise ValueError("this policy reads text only: leave `image` out")
        repeated = [(asked, picture) for asked, picture in zip(user_prompts, images, strict=True) for _ in range(n)]
        enhancements = []
        was_training = self.model.training
        self.model.eval()
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            for start in range(0, len(repeated), batch_size):
                asked, pictures = zip(*repeated[start : start + batch_size], strict=True)
                answers = self._answer(asked, pictures, max_new_tokens, temperature)
                for user_prompt, (answer, rewrite) in zip(asked, answers, strict=True):
                    enhancements.append(Enhancement(user_prompt, rewrite or user_prompt, rewrite is None, answer))
        self.model.train(was_training)
        if n > 1:
            enhancements = [enhancements[start : start + n] for start in range(0, len(enhancements), n)]
        return enhancements[0] if isinstance(prompt, str) else enhancements

    def _answer(
        self,
        user_prompts: Sequence[str],
        images: Sequence[Image.Image | None],
        max_new_tokens: int,
        temperature: float,
    ) -> list[tuple[str, str | None]]:
        """What the policy wrote to each prompt, and the rewrite in it; None if it is malformed."""
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
        return [(text, parse_answer(text, done)) for text, done in zip(texts, finished, strict=True)]
