import pytest
import torch
from conftest import TINY_WORLD
from PIL import Image
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from brushup.enhancer import PromptEnhancer
from brushup.prompts import parse_answer


@pytest.fixture(scope="module")
def enhancer():
    folder = TINY_WORLD / "policy"
    model = Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return PromptEnhancer(model, AutoProcessor.from_pretrained(folder))


PROMPTS = ["crimson box, huge, snowy backdrop", "a tiny azure ball", "draw a green plus sign please"]


def test_greedy_rewrites_do_not_depend_on_the_batch(enhancer):
    together = enhancer.enhance(PROMPTS, temperature=0)
    alone = [enhancer.enhance([prompt], temperature=0)[0] for prompt in PROMPTS]
    assert together == alone
    assert all(parse_answer(enhancement.prompt) == enhancement.prompt for enhancement in together)


def test_the_seed_decides_the_samples(enhancer):
    prompts = PROMPTS * 8
    first = enhancer.enhance(prompts, temperature=1.0, seed=1)
    assert first == enhancer.enhance(prompts, temperature=1.0, seed=1)
    assert first != enhancer.enhance(prompts, temperature=1.0, seed=2)


def test_sampling_leaves_the_global_random_state_alone(enhancer):
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    enhancer.enhance(PROMPTS)
    assert torch.rand(1) == wanted


def test_a_cut_off_answer_falls_back_to_the_users_prompt(enhancer):
    for enhancement in enhancer.enhance(PROMPTS, max_new_tokens=2):
        assert enhancement.fell_back and enhancement.prompt == enhancement.user_prompt


def test_the_policy_takes_a_picture(enhancer):
    """The tiny policy's vision tower works: a picture changes what comes after."""
    logits = []
    for color in ("red", "blue"):
        content = [
            {"type": "image", "image": Image.new("RGB", (32, 32), color)},
            {"type": "text", "text": "like this"},
        ]
        inputs = enhancer.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            logits.append(enhancer.model(**inputs).logits[0, -1])
    assert torch.isfinite(logits[0]).all() and not torch.allclose(logits[0], logits[1])
