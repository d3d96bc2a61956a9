"""Six kinds of policy are asked, and answer, in training and in use alike; a user's words are never special tokens."""

import json

import pytest
import torch
from conftest import TINY_WORLD
from PIL import Image
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from brushup.config import PromptEnhancerConfig
from brushup.policy.chat import ask, prepare_processor, tokenize, without_special_tokens
from brushup.policy.enhancer import PromptEnhancer
from brushup.prompts.dataset import load_prompts
from brushup.prompts.template import SYSTEM_PROMPT
from brushup.rewards.registry import parse_rewards
from brushup.training.rollout import prompts_of
from brushup.training.trainer import PromptEnhancerTrainer
from support.training import StubWorker


POLICY = TINY_WORLD / "policy"
TEXT = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT |= {"num_key_value_heads": 1, "head_dim": 16, "initializer_range": 1.0}  # answers that differ
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
THINKING = TURNS + "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
GEMMA = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{% if part.type == 'image' %}"
    "IMAGE{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)


def make_tokenizer(*special: str, **tokens: str):
    """The tiny world's tokenizer with further special tokens, which become its attributes."""
    tokenizer = AutoTokenizer.from_pretrained(POLICY, extra_special_tokens=tokens or None)
    tokenizer.add_tokens(list(special), special_tokens=True)
    return tokenizer


def make_llama(tokenizer, template):
    tokenizer.chat_template = template
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **TEXT)
    ), tokenizer


def qwen2_vl():
    return None, AutoProcessor.from_pretrained(POLICY)


def thinking():
    return make_llama(make_tokenizer("<think>", "</think>"), THINKING)


def without_pad_token():
    model, tokenizer = make_llama(make_tokenizer(), TURNS)
    tokenizer.pad_token = None
    return model, tokenizer


def without_system_role():
    return make_llama(make_tokenizer(), GEMMA)


def gemma3():
    names = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}
    tokenizer = make_tokenizer(**names)
    ids = {name.replace("token", "token_index"): tokenizer.convert_tokens_to_ids(word) for name, word in names.items()}
    images = Gemma3ImageProcessor(size={"height": 32, "width": 32})
    template = PARTS.replace("IMAGE", "<start_of_image>")
    processor = Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)
    config = Gemma3Config(
        text_config={**TEXT, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id},
        vision_config={**VISION, "image_size": 32, "patch_size": 8},
        mm_tokens_per_image=4,
        **ids,
    )
    return Gemma3ForConditionalGeneration(config), processor


def smolvlm():
    tokenizer = make_tokenizer(
        *("<row_1_col_1>", "<end_of_utterance>"),
        fake_image_token="<fake_token_around_image>", image_token="<image>", global_image_token="<global-img>",
    )  # fmt: skip
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}, "do_image_splitting": False}
    processor = SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes),
        tokenizer,
        SmolVLMVideoProcessor(),
        image_seq_len=4,
        chat_template=PARTS.replace("IMAGE", "<image>"),
    )
    config = SmolVLMConfig(
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config={**VISION, "image_size": 32, "patch_size": 8},
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
    )
    return SmolVLMForConditionalGeneration(config), processor


KINDS = {"qwen2_vl": qwen2_vl, "thinking": thinking, "without_pad_token": without_pad_token}
KINDS |= {"without_system_role": without_system_role, "gemma3": gemma3, "smolvlm": smolvlm}
WITH_IMAGES = ("qwen2_vl", "gemma3", "smolvlm")


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """A folder for each kind, as a user would have it; the tiny Qwen2-VL was trained, the others are random."""
    folders = {}
    for name, make in KINDS.items():
        torch.manual_seed(0)
        model, processor = make()
        folders[name] = tmp_path_factory.mktemp(name) if model else POLICY
        if model:
            model.generation_config.repetition_penalty = 1.3  # Qwen2.5 ships 1.05
            model.save_pretrained(folders[name])
            processor.save_pretrained(folders[name])
        if name not in WITH_IMAGES:  # the tokenizer came with a processor for images
            file = folders[name] / "tokenizer_config.json"
            file.write_text(
                json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "processor_class"})
            )
    return folders


@pytest.mark.parametrize(("name", "image"), [(name, False) for name in KINDS] + [(name, True) for name in WITH_IMAGES])
def test_training_and_use_ask_and_answer_alike(policies, tmp_path, name, image):
    rows = [{"user_prompt": "crimson box, huge"}, {"user_prompt": "a tiny azure ball <|im_end|> in the snow, please"}]
    if image:
        for row, color in zip(rows, ("red", "blue"), strict=True):
            Image.new("RGB", (32, 32), color).save(tmp_path / f"{color}.png")
            row["image"] = f"{color}.png"
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, rows)))
    args = PromptEnhancerConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        num_generations=2,
        max_completion_length=12,
        top_k=1,  # the likeliest token each time
        chat_template_kwargs={"enable_thinking": False} if name == "thinking" else None,
        model_init_kwargs={"dtype": "float32"},
        use_cpu=True,
        bf16=False,
        report_to="none",
    )
    trainer = PromptEnhancerTrainer(
        str(policies[name]),
        StubWorker(),
        parse_rewards(args),
        args,
        train_dataset=load_prompts(str(tmp_path / "p.jsonl")),
    )
    prompts = prompts_of(list(trainer.train_dataset))
    asked, images, fields = trainer._tokenize_prompts(prompts)
    trainer.model.eval()
    answered, _ = trainer._generate_single_turn(asked, images, fields, 1)

    trainer.save_model()
    enhancer = PromptEnhancer.from_pretrained(tmp_path, device="cpu", dtype="float32")
    pictures = [row["image"] for row in trainer.train_dataset] if image else [None, None]
    requests = [ask(enhancer.processor, row["user_prompt"], it) for row, it in zip(rows, pictures, strict=True)]
    inputs = tokenize(enhancer.processor, requests)
    read = [ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
    assert read == [list(ids) for ids in asked]
    text = trainer._tokenizer.decode(asked[1])
    assert SYSTEM_PROMPT in text and "< |im_end|> in the snow" in text
    assert ("<think>\n\n</think>" in text) == (name == "thinking")
    answers = enhancer.enhance([row["user_prompt"] for row in rows], max_new_tokens=12, image=pictures)
    decoded = trainer._tokenizer.batch_decode(answered, skip_special_tokens=True)
    assert [answer.answer for answer in answers] == decoded and all(decoded)


@pytest.mark.parametrize("name", KINDS)
def test_no_word_of_a_user_is_a_special_token(policies, name):
    """Whatever the tokenizer calls special, and tags that are not."""
    processor = AutoProcessor.from_pretrained(policies[name])
    prepare_processor(processor)
    tokenizer = getattr(processor, "tokenizer", processor)
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    words = [tokenizer.added_tokens_decoder[index].content for index in special]
    nested = [word[:4] + word + word[4:] for word in words]
    for word in words + nested:
        ids = tokenizer(without_special_tokens(tokenizer, f"a {word} b {word}{word}"), add_special_tokens=False)[
            "input_ids"
        ]
        assert not special & {*ids}, word
    assert without_special_tokens(tokenizer, "a red ball") == "a red ball"


def test_a_tokenizer_without_a_chat_template_is_an_error():
    tokenizer = AutoTokenizer.from_pretrained(POLICY)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no chat template, so it can't be asked for anything"):
        prepare_processor(tokenizer)
    tokenizer.chat_template = "always the same"
    with pytest.raises(ValueError, match="takes no system and user message in turn"):
        prepare_processor(tokenizer)
