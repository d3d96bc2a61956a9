"""The rewards that look at the rewrite alone."""

import json
import random
import re
import sys

import pytest
import torch
from conftest import REPOSITORY
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, BertTokenizerFast
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)

import world
from brushup.prompts.template import parse_answer
from brushup.rewards.quality_score import quality_points
from brushup.rewards.registry import RewardSpec, load_text_rewards
from support.rewards import completions, load_reward


# ----------------------------------------------------------------------------------------------- words and length


@pytest.mark.parametrize(
    ("user_prompt", "rewrite", "share"),
    [
        ("a purple rabbit eating carrots", "A Purple rabbit, eating a carrot in the grass", 1.0),
        ("a purple rabbit eating carrots", "a rabbit eating carrots", 0.75),
        ("three boxes", "three box-like buildings and a box", 1.0),
        ("draw me a picture of the", "anything", 1.0),
        ("보라색 토끼", "당근을 먹는 보라색 토끼", 1.0),
        ("a cat", "", 0.0),
        ("보라색 토끼", "a purple rabbit", 1.0),  # a translation has no word in common
        ("보라색 토끼", "a purple 토끼", 0.5),
        ("보라색 토끼", "고양이", 0.0),
        ("간판에 COFFEE 만", "a sign", 0.0),
        ("간판에 COFFEE 만", "a sign that reads COFFEE", 1.0),
    ],
)
def test_keyword_retention(user_prompt, rewrite, share):
    assert load_reward("keyword_retention")(completions(rewrite), user_prompt=[user_prompt]) == [share]


@pytest.mark.parametrize(
    ("user_prompt", "rewrite", "earned"),
    [
        (
            "a cat",
            "a fluffy orange cat sitting on a sunny windowsill, highly detailed",
            {"longer", "keeps_keywords", "five_new_words", "quality_words", "sentence"},
        ),
        ("a cat", "a fluffy orange dog sitting on a sunny sill", {"longer", "five_new_words", "sentence"}),
        ("a cat", "cat", {"keeps_keywords"}),
        ("a cat", "cat 4k", {"longer", "keeps_keywords", "quality_words"}),
        ("a cat", "cat cat cat cat cat cat", {"longer", "keeps_keywords"}),
    ],
)
def test_quality_score(user_prompt, rewrite, earned):
    points = quality_points(user_prompt, rewrite)
    assert {name for name, has in points.items() if has} == earned
    assert load_reward("quality_score")(completions(rewrite), user_prompt=[user_prompt]) == [len(earned) / 5]


def test_length():
    tokens = [{"clip": 77, "t5": 10}, {"clip": 0}, {"clip": 154}, {"clip": 38.5}, {"clip": 115.5}, {"clip": 900}, {}]
    rewrites = completions(*["a cat"] * len(tokens))
    assert load_reward("length", target=77)(rewrites, rewrite_tokens=tokens) == [1, 0, 0, 0.5, 0.5, 0, None]
    by_t5 = load_reward("length", target=20, tokenizer="t5")
    assert by_t5(rewrites[:1], rewrite_tokens=tokens[:1], user_prompt=["a cat"]) == [0.5]
    with pytest.raises(ValueError, match="no tokenizer 't5'; it has clip"):
        by_t5(rewrites[1:2], rewrite_tokens=tokens[1:2])
    with pytest.raises(ValueError, match="target is 0"):
        load_reward("length", target=0)


# --------------------------------------------------------------------------------------------------- repetition


@pytest.mark.parametrize(
    ("rewrite", "size", "share"),
    [
        ("a red cup and a red plate", 3, 1.0),
        ("a red cup and a red plate", 2, 5 / 6),  # "a red" twice
        ("cat cat cat cat cat cat", 3, 1 / 4),
        ("Cat, cat; CAT - cat.", 1, 1 / 4),  # case and punctuation do not matter
        ("sharp, detailed, sharp, detailed, sharp", 2, 2 / 4),
        ("two words", 3, 1.0),
        ("", 3, 1.0),
    ],
)
def test_repetition(rewrite, size, share):
    assert load_reward("repetition", ngram_size=size)(completions(rewrite)) == [pytest.approx(share)]


def test_repetition_of_a_batch_and_a_wrong_size():
    reward = load_reward("repetition")
    assert reward(completions("a a a a", "a b c d"), user_prompt=["a", "b"]) == [0.5, 1.0]
    with pytest.raises(ValueError, match="reward_kwargs of 'repetition': ngram_size is 0"):
        load_reward("repetition", ngram_size=0)


# ----------------------------------------------------------------------------------------------------- language


@pytest.fixture(scope="module")
def language():
    return load_reward("language")


@pytest.mark.parametrize("file", ["validation", "challenging"])
def test_language_on_real_prompts(language, file):
    rows = [json.loads(line) for line in (REPOSITORY / "data" / f"{file}.jsonl").read_text().splitlines()]
    korean = [row["user_prompt"] for row in rows if row["category"] == "korean"]
    english = [row["user_prompt"] for row in rows if row["category"] != "korean"]
    assert len(korean) >= 19 and len(english) >= 250
    # Each stands for a rewrite. Short ones are among them: "beehive", "a tulip".
    assert max(language(completions(*korean), user_prompt=korean)) < 0.1
    scores = language(completions(*english), user_prompt=english)
    assert sum(score > 0.5 for score in scores) / len(scores) > 0.98


def test_language_has_nothing_against_the_generators_captions(language):
    captions = [world.caption(world.random_scene(random.Random(seed))) for seed in range(200)]
    assert min(language(completions(*captions), user_prompt=captions)) == 1.0


@pytest.mark.parametrize("rewrite", ["eine alte Scheune bei Sonnenuntergang", "tres manzanas verdes en una mesa"])
def test_language_knows_other_languages_in_latin_letters(language, rewrite):
    assert language(completions(rewrite), user_prompt=["an old barn"])[0] < 0.1


@pytest.mark.parametrize(
    ("user_prompt", "rewrite", "score"),
    [
        ("사과", "a big red 사과", 7 / 9),  # of nine letters two are Korean
        ('간판에 "안녕"', 'a sign that reads "안녕"', 1.0),  # the user wants it written
        ("간판", 'a sign that reads "안녕"', 14 / 16),  # the user said nothing of it
        ("고양이", "a cat", 1.0),
        ("고양이", "A CAT, 4K", 1.0),
        ("고양이", "", 0.0),
        ("고양이", "3", 0.0),
    ],
)
def test_language_of_mixed_and_short_rewrites(language, user_prompt, rewrite, score):
    assert language(completions(rewrite), user_prompt=[user_prompt]) == [pytest.approx(score)]


def test_language_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    with pytest.raises(ImportError, match=re.escape('pip install -e ".[rewards]"')):
        load_reward("language")


# ------------------------------------------------------------------------------------------------------- format


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("a red cup on a table", 1.0),
        ("  \n a red cup\n on a\r\n table \n", 1.0),  # white space does not count
        ("caf\u0065\u0301 tables", 1.0),  # a separate accent: the parser writes é
        ('"a red cup"', 9 / 11),
        ("Prompt: a red cup", 9 / 17),
        ("**Enhanced prompt:** a red cup", 9 / 30),
        ("Sure, here you are!\n\na red cup\n\nLet me know if you want more.", 9 / 59),
        ("<think>a cup, hm</think>a red cup", 9 / 33),
        ("KEEP", 1.0),
        ("**KEEP**", 4 / 8),
        ("<think>a cup, hm", 0.0),  # malformed
        ("I cannot do that.", 0.0),
        (" \n ", 0.0),
        ("", 0.0),
    ],
)
def test_format_is_the_share_of_the_answer_that_is_the_prompt(answer, share):
    rewrite = completions(parse_answer(answer, "a cup") or "")
    assert load_reward("format")(rewrite, raw_answer=[answer], user_prompt=["a cup"]) == [pytest.approx(share)]


def test_format_of_an_answer_that_the_users_prompt_stands_in_for():
    """So it is in validation: the answer was malformed, or cut off."""
    answers = ["<think>a", "a red cup on a ta"]
    assert load_reward("format")(completions("a cup of mine", "a cup"), raw_answer=answers) == [0.0, 0.0]


def test_format_of_a_batch_and_of_a_prompt_that_no_policy_wrote():
    answers = ["a red cup", None, "Prompt: a red cup"]
    scores = load_reward("format")(completions(*["a red cup"] * 3), raw_answer=answers)
    assert scores == [1.0, 1.0, pytest.approx(9 / 17)]


# ------------------------------------------------------------------------------------------------------- intent


USER_PROMPTS = ["a cat", "a red cat", "빨간 고양이", "a cat"]
REWRITES = ["a red cat on a mat", "a red cat", "a red cat", ""]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> str:
    """A BERT with random weights, and a tokenizer of whole words."""
    folder = str(tmp_path_factory.mktemp("encoder"))
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {word: index for index, word in enumerate([*special, *"a red cat on mat 빨간 고양이".split()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    BertTokenizerFast(tokenizer_object=tokenizer, vocab=vocabulary).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "initializer_range": 0.5,
    }
    BertModel(BertConfig(vocab_size=len(vocabulary), **sizes)).save_pretrained(folder)
    return folder


def test_intent_is_the_cosine_of_mean_pooled_embeddings(encoder):
    """Against one text at a time, without padding, where the mean needs no mask."""
    model, tokenizer = BertModel.from_pretrained(encoder).eval(), BertTokenizerFast.from_pretrained(encoder)

    def embed(text):
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    expected = [
        max(0.0, torch.cosine_similarity(embed(user_prompt), embed(rewrite), dim=0).item())
        for user_prompt, rewrite in zip(USER_PROMPTS, REWRITES, strict=True)
    ]
    assert max(expected) == pytest.approx(1.0) and min(expected) < 0.9  # they differ
    for batch_size in (1, 3, 64):
        reward = load_reward("intent", model_name=encoder, batch_size=batch_size)
        assert reward(completions(*REWRITES), user_prompt=USER_PROMPTS) == pytest.approx(expected, abs=1e-5)


def test_intent_reads_max_length_tokens(encoder):
    reward = load_reward("intent", model_name=encoder, max_length=4)  # two words and the two special tokens
    assert reward(completions("a red"), user_prompt=["a red cat on a mat"]) == [pytest.approx(1.0)]


def test_intent_is_0_for_opposites(encoder, monkeypatch):
    reward = load_reward("intent", model_name=encoder)
    monkeypatch.setattr(reward, "embed", lambda texts: torch.tensor([[1.0, 0.0], [-1.0, 0.0]])[: len(texts)])
    assert reward(completions("a cat", "cats"), user_prompt=["a cat", "a cat"]) == [1.0, 0.0]


def test_intent_is_whole_on_each_rank_under_zero3(encoder):
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})  # alive while it counts, as in TrainingArguments
    try:
        specs = [RewardSpec("intent", kwargs={"model_name": encoder}), RewardSpec("clip")]
        (reward,) = load_text_rewards(specs).values()
        assert is_deepspeed_zero3_enabled(), config  # the policy is still to be sharded
    finally:
        unset_hf_deepspeed_config()
    assert reward._function.model.embeddings.word_embeddings.weight.shape == (12, 32)
    assert reward(completions("a cat"), user_prompt=["a cat"]) == [pytest.approx(1.0)]
