"""`vqa`, on the tiny world's policy with tokens for yes and no."""

import random

import pytest
import torch
from conftest import TINY_WORLD
from PIL import Image
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

import world
from support.judge import save_judge
from support.rewards import load_reward


YES, NO = ["yes", "Yes", " Yes", "YES"], ["no", "No", " no"]
NEITHER = ["yesterday", "not", "nope"]
PROMPTS = ["a big red circle on a white background", "red", 'say "yes"', "a <|image_pad|> and a cross"]


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> str:
    return save_judge(tmp_path_factory.mktemp("judge"), [*YES, *NO, *NEITHER])


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Of different sizes."""
    scenes = [world.random_scene(random.Random(seed)) for seed in range(4)]
    images = [world.draw_scene(scene, random.Random(1)) for scene in scenes]
    return [image.resize(size) for image, size in zip(images, [(32, 32), (64, 32), (48, 80), (32, 32)], strict=True)]


def test_vqa_is_the_softmax_over_yes_and_no(judge, images):
    """Against the whole softmax of one forward pass per image, without padding, with the ids of the words."""
    processor = AutoProcessor.from_pretrained(judge)
    model = Qwen2VLForConditionalGeneration.from_pretrained(judge).eval()
    yes, no = ([processor.tokenizer.convert_tokens_to_ids(word) for word in words] for words in (YES, NO))
    expected = []
    for image, prompt in zip(images[:3], PROMPTS[:3], strict=True):
        text = (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
            f'Does this picture show "{prompt}"? Answer yes or no.<|im_end|>\n<|im_start|>assistant\n'
        )
        with torch.no_grad():
            logits = model(**processor(text=[text], images=[image], return_tensors="pt")).logits[0, -1]
        probabilities = logits.softmax(-1)
        expected.append((probabilities[yes].sum() / probabilities[[*yes, *no]].sum()).item())
    assert max(expected) - min(expected) > 0.01 and 0 < min(expected) and max(expected) < 1
    reward = load_reward("vqa", model_name=judge)
    assert reward(images[:3], PROMPTS[:3], [""] * 3) == pytest.approx(expected, abs=1e-4)


def test_vqa_scores_do_not_depend_on_the_batch(judge, images):
    reward = load_reward("vqa", model_name=judge, batch_size=1)
    alone = reward(images, PROMPTS, [""] * 4)
    for batch_size in (3, 4):
        reward.batch_size = batch_size
        assert reward(images, PROMPTS, ["of no", "account", "", ""]) == pytest.approx(alone, abs=1e-4)


def test_vqa_in_half_precision(judge, images):
    scores = [
        load_reward("vqa", model_name=judge, dtype=dtype)(images, PROMPTS, PROMPTS)
        for dtype in ("float32", "bfloat16")
    ]
    assert scores[1] == pytest.approx(scores[0], abs=0.05)


def test_the_tokens_that_read_yes_and_no(judge):
    model = load_reward("vqa", model_name=judge).model
    for word, texts in (("yes", YES), ("no", NO)):
        found, tokenizer = model.tokens(word), model.processor.tokenizer
        assert found == sorted(set(found)) and set(found) >= set(tokenizer.convert_tokens_to_ids(texts))
        assert {tokenizer.decode([token]).strip().lower() for token in found} == {word}


def test_a_model_without_such_tokens_is_refused(tmp_path):
    processor = AutoProcessor.from_pretrained(TINY_WORLD / "policy")
    processor.tokenizer = processor.tokenizer.train_new_from_iterator(["letters alone"], 270, show_progress=False)
    processor.save_pretrained(tmp_path)
    Qwen2VLForConditionalGeneration.from_pretrained(TINY_WORLD / "policy").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"'vqa': the tokenizer of {tmp_path} has no single token that reads 'yes'"):
        load_reward("vqa", model_name=str(tmp_path))
