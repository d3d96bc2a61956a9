import re
import textwrap

import pytest
import torch
from conftest import TINY_WORLD
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from brushup.policy.enhancer import PromptEnhancer
from brushup.prompts.template import SYSTEM_PROMPT, parse_answer


POLICY = TINY_WORLD / "policy"


@pytest.fixture(scope="module")
def enhancer():
    return PromptEnhancer.from_pretrained(POLICY, device="cpu")


PROMPTS = ["crimson box, huge, snowy backdrop", "a tiny azure ball", "draw a green plus sign please"]


def test_greedy_rewrites_do_not_depend_on_the_batch(enhancer):
    together = enhancer.enhance(PROMPTS, temperature=0)
    alone = [enhancer.enhance([prompt], temperature=0)[0] for prompt in PROMPTS]
    assert together == alone
    assert all(parse_answer(enhancement.prompt, "a cat") == enhancement.prompt for enhancement in together)


def test_the_seed_decides_the_samples(enhancer):
    prompts = PROMPTS * 8
    first = enhancer.enhance(prompts, temperature=1.0, seed=1)
    assert first == enhancer.enhance(prompts, temperature=1.0, seed=1)
    assert first != enhancer.enhance(prompts, temperature=1.0, seed=2)


def test_sampling_leaves_the_global_random_state_alone(enhancer):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    enhancer.enhance(PROMPTS, temperature=0.7)
    assert torch.rand(1) == expected


def test_a_cut_off_answer_falls_back_to_the_users_prompt(enhancer):
    for enhancement in enhancer.enhance(PROMPTS, max_new_tokens=2):
        assert enhancement.malformed and enhancement.prompt == enhancement.user_prompt


def test_the_policy_takes_an_image(enhancer):
    """The tiny policy's vision tower works: an image changes what comes after."""
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


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> str:
    """An adapter with random weights on the tiny policy, saved alone."""
    folder = tmp_path_factory.mktemp("adapter")
    model = Qwen2VLForConditionalGeneration.from_pretrained(POLICY, dtype=torch.float32)
    settings = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(folder)
    return str(folder)


def test_an_adapter_is_found_with_its_base_model(enhancer, adapter):
    loaded = PromptEnhancer.from_pretrained(adapter, device="cpu")
    assert loaded.model.dtype == torch.float32
    rewrites = loaded.enhance(PROMPTS, temperature=0)
    assert rewrites != enhancer.enhance(PROMPTS, temperature=0)
    with loaded.model.disable_adapter():
        assert loaded.enhance(PROMPTS, temperature=0) == enhancer.enhance(PROMPTS, temperature=0)


def test_a_merged_checkpoint_is_plain_and_writes_the_same(adapter, tmp_path):
    loaded = PromptEnhancer.from_pretrained(adapter, device="cpu")
    expected = loaded.enhance(PROMPTS, temperature=0)
    loaded.merge_and_save(tmp_path)
    how = (tmp_path / "README.md").read_text()
    (code,) = re.findall(r"(?:^    .+\n)+", how, re.MULTILINE)
    names = {"answer": 'Prompt: "a red ball"', "user_prompt": "ball"}
    exec(textwrap.dedent(code), names)
    assert names["prompt"] == "a red ball" and SYSTEM_PROMPT in how
    assert not (tmp_path / "adapter_config.json").exists()
    base, merged = load_file(POLICY / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert {name: tensor.shape for name, tensor in merged.items()} == {n: tensor.shape for n, tensor in base.items()}
    plain = Qwen2VLForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float32)
    again = PromptEnhancer(plain, AutoProcessor.from_pretrained(tmp_path)).enhance(PROMPTS, temperature=0)
    assert again == expected == PromptEnhancer.from_pretrained(tmp_path, device="cpu").enhance(PROMPTS, temperature=0)


def test_several_rewrites_of_each_prompt(enhancer):
    several = enhancer.enhance(PROMPTS, n=4, temperature=1.0)
    assert [[rewrite.user_prompt for rewrite in group] for group in several] == [[prompt] * 4 for prompt in PROMPTS]
    assert any(len({rewrite.prompt for rewrite in group}) > 1 for group in several)
    single = enhancer.enhance(PROMPTS[0], temperature=0)
    assert single == enhancer.enhance(PROMPTS, temperature=0)[0] and single.user_prompt == PROMPTS[0]
    assert enhancer.enhance(PROMPTS[0], n=2, temperature=0) == [single, single]


def test_an_image_goes_with_its_prompt(enhancer, text_policy):
    red, blue = (Image.new("RGB", (32, 32), color) for color in ("red", "blue"))
    shown = []
    hook = enhancer.model.model.visual.register_forward_pre_hook(lambda _, inputs: shown.append(len(inputs[0])))
    mixed = enhancer.enhance(PROMPTS, temperature=0, image=[red, None, blue])
    hook.remove()
    assert shown and shown[0] == 2 * (48 // 8) ** 2  # the patches of two images, enlarged
    assert mixed[1] == enhancer.enhance(PROMPTS[1], temperature=0)
    assert mixed[0] == enhancer.enhance(PROMPTS[0], temperature=0, image=red)
    with pytest.raises(ValueError, match="reads text only"):
        PromptEnhancer.from_pretrained(text_policy, device="cpu").enhance("a cat", image=red)
    with pytest.raises(ValueError, match="reads text only: it cannot look at a draft"):
        PromptEnhancer.from_pretrained(text_policy, device="cpu").revise([], [])


@pytest.mark.parametrize("wrong", [{"prompt": ["a cat", " "]}, {"prompt": "a cat", "n": 0}])
def test_wrong_arguments_are_refused(enhancer, wrong):
    with pytest.raises(ValueError, match="prompts that are not empty"):
        enhancer.enhance(**wrong)


@pytest.mark.parametrize("name", ["runs/nothing", "runs/no/such", "."])
def test_a_model_that_is_not_there(name):
    with pytest.raises(OSError, match=f"'{name}' is no folder here with a model, and no model on the Hub"):
        PromptEnhancer.from_pretrained(name)
