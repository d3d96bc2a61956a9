"""Losses of the tiny world's language models, by which nothing is computed twice and little is padded."""

import random
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from PIL import Image
from transformers import DynamicCache, Qwen2Tokenizer, Qwen2VLForConditionalGeneration, Qwen2VLProcessor

from learning import DEVICE


def batches_of(example: Callable[[], tuple], size: int, tokenizer: Qwen2Tokenizer) -> Iterator[list[tuple]]:
    """Yield batches of examples of like length; an example begins with its user prompt and ends with the answer.

    Processes that train one model have long batches at the same time, so that they don't wait for each other.
    """
    order = random.Random(0)
    while True:
        examples = [example() for _ in range(16 * size)]
        examples.sort(key=lambda example: len(tokenizer(example[0] + example[-1]).input_ids))
        batches = [examples[start : start + size] for start in range(0, len(examples), size)]
        order.shuffle(batches)
        yield from batches


def answer_loss(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    messages: list[list[dict]],
    answers: list[str],
    images: list[Image.Image] | None = None,
) -> torch.Tensor:
    """Return the mean cross entropy of the answers' tokens; `images` are those in the messages, in order.

    Tokens that all rows begin with, such as the system message, are computed once.
    """
    tokenizer = processor.tokenizer
    ends = [answer + "<|im_end|>" for answer in answers]
    heads = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    texts = [head + end for head, end in zip(heads, ends, strict=True)]
    inputs = processor(images=images, text=texts, padding=True, padding_side="right", return_tensors="pt").to(DEVICE)
    tokens, labels = inputs["input_ids"], torch.full_like(inputs["input_ids"], -100)
    for row, (end, stop) in enumerate(zip(ends, inputs["attention_mask"].sum(1).tolist(), strict=True)):
        start = stop - len(tokenizer(end).input_ids)
        labels[row, start:stop] = tokens[row, start:stop]
    shared = int((tokens == tokens[0]).all(0).cumprod(0).sum())
    with torch.autocast(DEVICE, torch.bfloat16):
        embeds = model.get_input_embeddings()(tokens)
        places = torch.arange(tokens.shape[1], device=DEVICE).expand(3, len(tokens), -1)
        if images:
            embeds, places = _with_images(model, inputs, embeds)
        head, rest = (embeds[:1, :shared], places[:, :1, :shared]), (embeds[:, shared:], places[:, :, shared:])
        errors = _errors(model, head, rest, labels[:, shared:])
    return errors.sum() / (labels[:, shared + 1 :] != -100).sum()


def question_loss(
    model: Qwen2VLForConditionalGeneration,
    processor: Qwen2VLProcessor,
    images: list[Image.Image],
    questions: list[list[tuple[str, str]]],
) -> torch.Tensor:
    """Return the mean of each answer's mean cross entropy, plus that of the descriptions' tokens.

    A long answer counts no more than a word, but the description, the first answer about each image, is learnt word
    for word as well; the second question asks about a whole prompt. Each image, which has as many questions as the
    others, is computed once for all of them.
    """
    text = "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
    inputs = processor(images=images, text=[text] * len(images), return_tensors="pt").to(DEVICE)
    means, descriptions = [], torch.zeros((), device=DEVICE)
    for first in (True, False):  # a description and a whole prompt are long: apart from them, little is padded
        rows = [row for asked in questions for row in (asked[:2] if first else asked[2:])]
        tokens, labels = _rows_of(processor.tokenizer, rows)
        with torch.autocast(DEVICE, torch.bfloat16):
            embeds, places = _with_images(model, inputs, model.get_input_embeddings()(inputs["input_ids"]))
            begin = int(places.max()) + 1
            then = torch.arange(begin, begin + tokens.shape[1], device=DEVICE).expand(3, len(tokens), -1)
            rest = (model.get_input_embeddings()(tokens), then)
            errors = _errors(model, (embeds, places), rest, labels)
        counts = (labels[:, 1:] != -100).sum(1)
        means.append(errors.sum(1) / counts)
        if first:
            descriptions = errors[::2].sum() / counts[::2].sum()
    return torch.cat(means).mean() + descriptions


def _rows_of(tokenizer: Qwen2Tokenizer, rows: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens of questions with their answers, and the labels, both padded on the right."""
    asked = [tokenizer(f"{question}<|im_end|>\n<|im_start|>assistant\n").input_ids for question, _ in rows]
    answered = [tokenizer(answer + "<|im_end|>").input_ids for _, answer in rows]
    pairs = list(zip(asked, answered, strict=True))
    tokens, labels = (
        torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in column], batch_first=True, padding_value=padding)
        for column, padding in (
            ([a + b for a, b in pairs], tokenizer.pad_token_id),
            ([[-100] * len(a) + b for a, b in pairs], -100),
        )
    )
    return tokens.to(DEVICE), labels.to(DEVICE)


def _with_images(
    model: Qwen2VLForConditionalGeneration, inputs: dict[str, torch.Tensor], embeds: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the embeddings with those of the images in their places, (rows, tokens, width), and all positions."""
    tokens, mask, kinds = (inputs[name] for name in ("input_ids", "attention_mask", "mm_token_type_ids"))
    grid = inputs["image_grid_thw"]
    looked = model.model.visual(inputs["pixel_values"], grid_thw=grid).pooler_output
    places, _ = model.model.get_rope_index(tokens, kinds, grid, attention_mask=mask)
    return embeds.masked_scatter((kinds == 1)[..., None], looked.to(embeds.dtype)), places


def _errors(
    model: Qwen2VLForConditionalGeneration,
    heads: tuple[torch.Tensor, torch.Tensor],
    rows: tuple[torch.Tensor, torch.Tensor],
    labels: torch.Tensor,
) -> torch.Tensor:
    """Return the cross entropy of each label after a row's first, (rows, tokens - 1), 0 where there is none.

    Args:
        heads: embeddings and positions of the beginnings, each computed once for as many rows as the others.
        rows: embeddings and positions of the tokens that go on from there, padded on the right, in the order of the
            beginnings.
        labels: of these tokens, (rows, tokens), -100 where there is none.
    """
    reader, cache = model.model.language_model, DynamicCache(config=model.config.text_config)
    reader(inputs_embeds=heads[0], position_ids=heads[1], cache=cache, use_cache=True)
    cache.batch_repeat_interleave(len(labels) // len(heads[0]))
    hidden = reader(inputs_embeds=rows[0], position_ids=rows[1], cache=cache, use_cache=True).last_hidden_state
    wanted = labels[:, 1:] != -100
    logits = model.lm_head(hidden[:, :-1][wanted]).float()
    errors = torch.zeros(wanted.shape, device=DEVICE)
    return errors.masked_scatter(wanted, F.cross_entropy(logits, labels[:, 1:][wanted], reduction="none"))
