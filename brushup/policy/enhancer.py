"""The enhancer: a policy with the template and the parser that it was trained with, for inference."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin
from trl import GRPOConfig

from brushup.common import default_device
from brushup.policy.candidates import pick_best, pick_revisions, with_drafts
from brushup.policy.chat import Draft, Request, ask, prepare_processor, tokenize, tokenizer_of
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
        turns: int = 1,
    ) -> Enhancement | list[Enhancement] | list[list[Enhancement]]:
        """Rewrite one prompt, or several.

        Args:
            n: rewrites of each prompt.
            max_new_tokens: an answer that does not end within them is malformed.
            temperature: of the sampling; 0: the likeliest tokens. Default: 0 for one rewrite, else 0.7.
            seed: of the sampling, and of the images; the same seed, prompts and batch size give the same rewrites.
            image: a reference image beside the prompt, for image-text policies; one for all, or a list.
            batch_size: answers written at once.
            best_of: rewrites, the likeliest and sampled ones, of which a judge picks one, or the prompt itself: see
                `candidates` and `reason` of the result.
            worker: renders and scores them (`load_worker`, or `HttpWorker` of a service).
            judge: makes the total of the worker's rewards, or the names of those to add up; default all. Rewards of
                the training flatter the policy: let others judge, too.
            turns: 2: the policy looks at the image of its rewrite, the `draft` of the result, and revises or keeps it.
                A judge, if there is one, or `best_of`, takes the revision only if it has more than the draft.

        Returns:
            An `Enhancement` for a prompt, a list for several; with `n` > 1 a list of `n` in place of each.

        Raises:
            ValueError: an empty prompt, `n` < 1, or not as many images as prompts; an image or two turns for a policy
                that reads text only; `best_of` or two turns with `n`, without a worker, or with a judge it lacks.
        """
        user_prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        images = list(image) if isinstance(image, Sequence) else [image] * len(user_prompts)
        self._check(user_prompts, images, n, best_of, turns, worker)
        requests = [Request(*pair) for pair in zip(user_prompts, images, strict=True)]
        write = functools.partial(self._write, max_new_tokens=max_new_tokens, seed=seed, batch_size=batch_size)
        if best_of > 1:
            likeliest = write(requests, temperature=0.0)
            sampled = iter(write(_repeated(requests, best_of - 1), temperature=temperature or 0.7))
            groups = [[first, *itertools.islice(sampled, best_of - 1)] for first in likeliest]
            enhancements = pick_best(groups, worker, judge, seed)
        else:
            temperature = (0.7 if n > 1 else 0.0) if temperature is None else temperature
            enhancements = write(_repeated(requests, n), temperature=temperature)
        if turns > 1:
            drafted = with_drafts(enhancements, worker, seed)
            enhancements = self.revise(drafted, images, max_new_tokens, temperature or 0.0, seed, batch_size)
        if turns > 1 and (best_of > 1 or judge is not None):
            enhancements = pick_revisions(enhancements, worker, judge, seed)
        if n > 1:
            enhancements = [enhancements[start : start + n] for start in range(0, len(enhancements), n)]
        return enhancements[0] if isinstance(prompt, str) else enhancements

    def revise(
        self,
        drafted: Sequence[Enhancement],
        images: Sequence[Image.Image | None],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        batch_size: int = 32,
    ) -> list[Enhancement]:
        """Return the enhancements after a second turn, in which the policy looks at the drafts.

        One whose draft has no image stays as it is. A malformed answer leaves the draft.

        Args:
            drafted: with their `draft`.
            images: the users' reference images, or None.
            max_new_tokens, temperature, seed, batch_size: as for `enhance`, whose errors it raises.
        """
        if not isinstance(self.processor, ProcessorMixin):
            raise ValueError("this policy reads text only: it cannot look at a draft")
        requests = [
            Request(e.user_prompt, image, Draft(e.draft.prompt, e.draft.image))
            for e, image in zip(drafted, images, strict=True)
            if e.draft.image
        ]
        revised = iter(self._write(requests, max_new_tokens, temperature, seed, batch_size))
        return [
            replace(next(revised), draft=e.draft, candidates=e.candidates, reason=e.reason) if e.draft.image else e
            for e in drafted
        ]

    @torch.no_grad()  # not inference_mode: FSDP2 would go on with its tensors in training
    def _write(
        self,
        requests: Sequence[Request],
        max_new_tokens: int,
        temperature: float,
        seed: int,
        batch_size: int,
    ) -> list[Enhancement]:
        """Return an enhancement of each request."""
        enhancements = []
        compiled = compiled_decoding(self.model) if len(requests) >= COMPILED_FROM * batch_size else {}
        was_training = self.model.training
        self.model.eval()
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            for start in range(0, len(requests), batch_size):
                batch = requests[start : start + batch_size]
                generation = {"max_new_tokens": max_new_tokens, **(compiled if len(batch) == batch_size else {})}
                answers = self._answer(batch, temperature, **generation)
                self.answered += len(batch)
                for request, (answer, rewrite) in zip(batch, answers, strict=True):
                    prompt = rewrite or request.current_prompt
                    enhancements.append(Enhancement(request.user_prompt, prompt, rewrite is None, answer))
        self.model.train(was_training)
        return enhancements

    def _check(
        self,
        user_prompts: list[str],
        images: list[Image.Image | None],
        n: int,
        best_of: int,
        turns: int,
        worker: Worker | None,
    ) -> None:
        """Raise a ValueError if `enhance` cannot work with these."""
        empty = sum(not user_prompt.strip() for user_prompt in user_prompts)
        if n < 1 or len(images) != len(user_prompts) or empty:
            raise ValueError(
                f"enhance needs n >= 1, prompts that are not empty, and an image for every prompt or for none; got "
                f"n={n}, {len(user_prompts)} prompts ({empty} empty), {len(images)} images"
            )
        if max(best_of, turns) > 1 and (n > 1 or worker is None):
            raise ValueError("enhance needs a worker, which renders, and n=1, for best_of several or for two turns")
        if (any(images) or turns > 1) and not isinstance(self.processor, ProcessorMixin):
            raise ValueError("this policy reads text only: leave `image` out, and take turns=1")

    def _answer(
        self,
        requests: Sequence[Request],
        temperature: float,
        **generation: Any,
    ) -> list[tuple[str, str | None]]:
        """Return the policy's answer to each request, and the prompt in it; None if it is malformed."""
        inputs = tokenize(self.processor, [ask(self.processor, *request) for request in requests])
        inputs = inputs.to(self.model.device)
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
            (text, parse_answer(text, request.current_prompt, done))
            for text, request, done in zip(texts, requests, finished, strict=True)
        ]
