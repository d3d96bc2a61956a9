"""The enhancer: a policy with the template and the parser that it was trained with, for inference."""

import functools
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import GRPOConfig

from brushup.common import default_device
from brushup.policy.candidates import pick_best
from brushup.policy.chat import ask, prepare_processor, tokenize, tokenizer_of
from brushup.policy.compiled import compiled_decoding
from brushup.policy.enhancement import Enhancement
from brushup.policy.load import is_adapter, load_adapter, load_model, load_processor
from brushup.prompts.template import SYSTEM_PROMPT, parse_answer
from brushup.recipe_config import AskingConfig
from brushup.render.job import Worker
from brushup.rewards.combine import Objective


COMPILED_FROM = 4  # full batches: compiling takes as long as a few
DECODING = "brushup_decoding"  # an entry of a trained policy's generation_config.json
HOW_TO_USE = """\
# How to ask this model

It rewrites a user's prompt for an image generator. Send two messages, with temperature 0:

- `system`: {system_prompt}
- `user`: the user's prompt

Its answer may hold more than the prompt: quotes, a label, thoughts. Brushup's parser takes them away, and returns None
for an answer without a prompt; then, as for the answer KEEP, render what the user wrote:

    from brushup.prompts.template import parse_answer
    prompt = parse_answer(answer, user_prompt) or user_prompt
"""


def vision_placeholder_ids(config: PreTrainedConfig) -> list[int]:
    """Return the ids of the tokens that stand for images and videos in a prompt; empty for a text model.

    A policy that writes one of them breaks its own next forward pass.
    """
    ids = (getattr(config, name, None) for name in ("image_token_id", "video_token_id"))
    return [token for token in ids if token is not None]


def decoding_of(args: GRPOConfig | AskingConfig) -> dict[str, Any]:
    """Return what decides an answer besides the sampling: penalties, for instance, as TRL generates with them."""
    sampling = (
        "do_sample",
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "max_new_tokens",
        "eos_token_id",
        "pad_token_id",
    )
    settings = {"repetition_penalty": args.repetition_penalty, **(args.generation_kwargs or {})}
    return {name: value for name, value in settings.items() if name not in (*sampling, "suppress_tokens")}


def _repeated(items: Sequence[Any], times: int) -> list[Any]:
    return [item for item in items for _ in range(times)]


class PromptEnhancer:
    """Rewrites prompts with a policy.

        enhancer = PromptEnhancer.from_pretrained("runs/tiny_cpu")
        enhancer.enhance("crimson disk, huge").prompt

    Args:
        model: an image-text or a text model, with or without an adapter.
        processor: its processor (image-text) or tokenizer (text).

    Attributes:
        answered: how many answers it has written.
    """

    def __init__(self, model: PreTrainedModel | PeftModel, processor: ProcessorMixin | PreTrainedTokenizerBase):
        prepare_processor(processor)
        self.model = model
        self.processor = processor
        # As training samples: the penalties of a base model's generation_config.json are not TRL's.
        self.decoding = getattr(model.generation_config, DECODING, {"repetition_penalty": 1.0})
        self.answered = 0

    @classmethod
    def from_pretrained(
        cls, model_or_adapter: str | Path, device: str | None = None, dtype: torch.dtype | str | None = None
    ) -> "PromptEnhancer":
        """Load the enhancer of a Hub id or a folder; an adapter names its base model.

        Args:
            device: default cuda, else mps, else cpu.
            dtype: default bfloat16 on CUDA, else float32.

        Raises:
            OSError: there is no such model, or an adapter's base model is not found.
            ValueError: an adapter does not fit its base model.
        """
        name, device = str(model_or_adapter), device or default_device()
        dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
        load = load_adapter if is_adapter(name) else load_model
        model = load(name, dtype=dtype, device_map=device)
        return cls(model, load_processor(name))

    def ask_as(self, args: GRPOConfig | AskingConfig) -> None:
        """Ask and decode as a run with these settings does, whatever the policy was saved with."""
        prepare_processor(self.processor, args.chat_template_kwargs)
        self.decoding = decoding_of(args)

    def merge_and_save(self, folder: str | Path) -> None:
        """Save a plain checkpoint, an adapter merged into its base model, for `vllm serve` or transformers.

        Its README.md says how to ask, and how to read the answer. The enhancer then holds the merged model.
        """
        if isinstance(self.model, PeftModel):
            self.model = self.model.merge_and_unload(safe_merge=True)
        self.model.save_pretrained(folder)
        self.processor.save_pretrained(folder)
        Path(folder, "README.md").write_text(HOW_TO_USE.format(system_prompt=SYSTEM_PROMPT), encoding="utf-8")

    def enhance(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        seed: int = 0,
        image: Image.Image | Sequence[Image.Image | None] | None = None,
        batch_size: int = 32,
        best_of: int = 1,
        worker: Worker | None = None,
        judge: Objective | Sequence[str] | None = None,
    ) -> Enhancement | list[Enhancement] | list[list[Enhancement]]:
        """Rewrite the user's prompt, or each of several.

        Args:
            prompt: one prompt, or several.
            n: rewrites of each prompt.
            max_new_tokens: an answer that does not end within them is malformed.
            temperature: of the sampling. 0 takes the likeliest token each time, as validation does. Default: 0 for
                one rewrite, else 0.7.
            seed: of the sampling, and of the images; the same seed, prompts and batch size give the same rewrites.
            image: a reference image beside the prompt, for image-text policies: one for all prompts, or a list with
                an image or None for each.
            batch_size: answers written at once. On CUDA four full batches or more are written with a compiled decoding
                step (see `compiled_decoding`).
            best_of: rewrites of each prompt, the likeliest and sampled ones. They and the prompt itself are rendered,
                and a judge picks one: see `candidates` and `reason` of the result.
            worker: renders and scores them (`load_worker`, or `HttpWorker` of a service).
            judge: makes the total that decides of the worker's rewards, or the names of those to add up; default all.
                Rewards that the policy was trained on flatter its rewrites: let others judge, too.

        Returns:
            An `Enhancement` for a prompt, a list of them for several; with `n` > 1 a list of `n` in place of each.

        Raises:
            ValueError: there is an empty prompt, `n` < 1, not as many images as prompts, or an image for a policy
                that reads text only; `best_of` together with `n`, or without a worker, or with a judge it lacks.
        """
        user_prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        images = list(image) if isinstance(image, Sequence) else [image] * len(user_prompts)
        self._check(user_prompts, images, n)
        if best_of > 1 and (n > 1 or worker is None):
            raise ValueError(
                "enhance needs a worker, which renders the candidates, and n=1, to pick the best_of several"
            )
        requests = list(zip(user_prompts, images, strict=True))
        write = functools.partial(self._write, max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size)
        if best_of > 1:
            likeliest = write(requests, temperature=0.0)
            sampled = iter(write(_repeated(requests, best_of - 1), temperature=temperature or 0.7))
            groups = [[first, *itertools.islice(sampled, best_of - 1)] for first in likeliest]
            enhancements = pick_best(groups, worker, judge, seed)
        else:
            temperature = (0.7 if n > 1 else 0.0) if temperature is None else temperature
            enhancements = write(_repeated(requests, n), temperature=temperature)
        if n > 1:
            enhancements = [enhancements[start : start + n] for start in range(0, len(enhancements), n)]
        return enhancements[0] if isinstance(prompt, str) else enhancements

    @torch.no_grad()  # not inference_mode: FSDP2 would go on with its tensors in training
    def _write(
        self,
        requests: Sequence[tuple[str, Image.Image | None]],
        max_new_tokens: int,
        temperature: float,
        seed: int,
        batch_size: int,
    ) -> list[Enhancement]:
        """Return an enhancement of each request, a user prompt and the image beside it."""
        enhancements = []
        compiled = compiled_decoding(self.model) if len(requests) >= COMPILED_FROM * batch_size else {}
        was_training = self.model.training
        self.model.eval()
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            for start in range(0, len(requests), batch_size):
                batch, batch_images = zip(*requests[start : start + batch_size], strict=True)
                generation = {"max_new_tokens": max_new_tokens, **(compiled if len(batch) == batch_size else {})}
                answers = self._answer(batch, batch_images, temperature, **generation)
                self.answered += len(batch)
                for user_prompt, (answer, rewrite) in zip(batch, answers, strict=True):
                    enhancements.append(Enhancement(user_prompt, rewrite or user_prompt, rewrite is None, answer))
        self.model.train(was_training)
        return enhancements

    def _check(self, user_prompts: list[str], images: list[Image.Image | None], n: int) -> None:
        """Raise a ValueError if `enhance` cannot work with these."""
        empty = sum(not user_prompt.strip() for user_prompt in user_prompts)
        if n < 1 or len(images) != len(user_prompts) or empty:
            raise ValueError(
                f"enhance needs n >= 1, prompts that are not empty, and an image for every prompt or for none; got "
                f"n={n}, {len(user_prompts)} prompts ({empty} empty), {len(images)} images"
            )
        if any(images) and not isinstance(self.processor, ProcessorMixin):
            raise ValueError("this policy reads text only: leave `image` out")

    def _answer(
        self,
        user_prompts: Sequence[str],
        images: Sequence[Image.Image | None],
        temperature: float,
        **generation: Any,
    ) -> list[tuple[str, str | None]]:
        """Return the policy's answer to each prompt, and the rewrite in it; None if it is malformed."""
        requests = [ask(self.processor, *pair) for pair in zip(user_prompts, images, strict=True)]
        inputs = tokenize(self.processor, requests).to(self.model.device)
        tokenizer, declared = tokenizer_of(self.processor), self.model.generation_config.eos_token_id
        ends = {tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None}
        sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        generated = self.model.generate(
            **inputs,
            **(sampling if temperature else {"do_sample": False}),
            **self.decoding,
            **generation,
            eos_token_id=list(ends),
            pad_token_id=tokenizer.pad_token_id,
            suppress_tokens=vision_placeholder_ids(self.model.config) or None,
        )[:, inputs["input_ids"].shape[1] :]
        finished = torch.isin(generated, torch.tensor(list(ends), device=generated.device)).any(dim=1).tolist()
        texts = tokenizer.batch_decode(generated, skip_special_tokens=True)
        return [
            (text, parse_answer(text, user_prompt, done))
            for text, user_prompt, done in zip(texts, user_prompts, finished, strict=True)
        ]
