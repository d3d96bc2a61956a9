"""The tiny policy as an image-text model that answers in single tokens; its answers are random."""

from collections.abc import Sequence
from pathlib import Path

import torch
from conftest import TINY_WORLD
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration


def save_judge(folder: Path, words: Sequence[str]) -> str:
    """Save the tiny Qwen2-VL with a token for each of the words, which its own tokenizer spells; return the folder."""
    processor = AutoProcessor.from_pretrained(TINY_WORLD / "policy")
    processor.tokenizer.add_tokens([*words])
    processor.save_pretrained(folder)
    model = Qwen2VLForConditionalGeneration.from_pretrained(TINY_WORLD / "policy", dtype=torch.float32)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(processor.tokenizer), mean_resizing=False)
    rows = model.get_input_embeddings().weight.data[-len(words) :]
    rows.copy_(torch.randn(rows.shape) * 0.2)  # large enough for answers that differ
    model.save_pretrained(folder)
    return str(folder)
