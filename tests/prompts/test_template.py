"""The one parser of an answer: what is drawn when a policy says this."""

import time

import pytest

from brushup.prompts.template import build_messages, parse_answer, parse_prompt


CAT = "a fluffy orange cat on a windowsill, soft morning light"

ANSWERS = [
    # as it should be
    (CAT, CAT),
    (f"  {CAT}\n", CAT),
    ("A square wheel rolls down a hill.", "A square wheel rolls down a hill."),
    # quotes
    (f'"{CAT}"', CAT),
    (f"“{CAT}”", CAT),
    (f"'{CAT}'", CAT),
    (f"`{CAT}`", CAT),
    (f'{CAT}"', CAT),
    (f"**{CAT}", CAT),
    ('a 12" ruler on a desk', 'a 12" ruler on a desk'),
    ('a shop sign that says "OPEN"', 'a shop sign that says "OPEN"'),
    ('"STOP" written on a red sign, under the word "GO"', '"STOP" written on a red sign, under the word "GO"'),
    # labels
    (f"Enhanced prompt: {CAT}", CAT),
    (f"**Enhanced Prompt:** {CAT}", CAT),
    (f"Prompt: {CAT}", CAT),
    (f"### Rewritten prompt\n\n{CAT}", CAT),
    (f"Here is the improved prompt: {CAT}", CAT),
    (f"Sure! Here's a refined version:\n\n{CAT}", CAT),
    (f'Answer: "{CAT}"', CAT),
    (f"Here's the improved prompt for Stable Diffusion 3: {CAT}", CAT),
    ("a meme with the caption: when it rains", "a meme with the caption: when it rains"),
    ("a movie poster: a lighthouse at night", "a movie poster: a lighthouse at night"),
    ("circle: red, small; background: white", "circle: red, small; background: white"),
    # markdown
    (f"**{CAT}**", CAT),
    (f"*{CAT}*", CAT),
    (f"- {CAT}", CAT),
    (f"1. {CAT}", CAT),
    (f"> {CAT}", CAT),
    (f"```\n{CAT}\n```", CAT),
    (f"```text\nPrompt: {CAT}\n```", CAT),
    # several paragraphs
    (f"Certainly! Here is a prompt for your picture.\n\n{CAT}\n\nI hope this helps!", CAT),
    (f"{CAT}\n\nThis prompt adds detail and lighting.", CAT),
    (f"{CAT}\nNote: I kept the cat.", CAT),
    ("a fluffy orange cat\non a windowsill,\nsoft morning light", CAT),
    (f"1. {CAT}\n2. a cat in the snow", CAT),
    (f"Option 1: {CAT}\n\nOption 2: a cat in the snow", CAT),
    ("Here is a fox in the snow, seen from above", "Here is a fox in the snow, seen from above"),
    ("sure-footed goats on a cliff", "sure-footed goats on a cliff"),
    # thinking
    (f"<think>The user wants a cat. Prompt: a dog?</think>\n{CAT}", CAT),
    (f"The user wants a cat.\n</think>\n\n{CAT}", CAT),
    (f"<think></think>{CAT}", CAT),
    (f"[THINK]A cat.[/THINK]{CAT}", CAT),
    (f"<thinking>A cat.</thinking>\n{CAT}", CAT),
    (f"◁think▷A cat.◁/think▷{CAT}", CAT),
    (f"<reasoning>A cat.</reasoning><answer>{CAT}</answer>", CAT),
    ("[THINK]The user wants a cat", None),
    ("a person [thinking] at a desk", "a person [thinking] at a desk"),
    ("<think>The user wants a cat, so I should", None),
    # markup
    (f"<answer>{CAT}</answer>", CAT),
    (f"{CAT}<|im_end|>", CAT),
    # other languages
    ("창가에 앉은 주황색 고양이, 부드러운 아침 햇살", "창가에 앉은 주황색 고양이, 부드러운 아침 햇살"),
    ("향상된 프롬프트: 보라색 토끼가 당근을 먹는다", "보라색 토끼가 당근을 먹는다"),
    ("물론입니다! 다음은 개선된 프롬프트입니다.\n\n보라색 토끼가 당근을 먹는다", "보라색 토끼가 당근을 먹는다"),
    ("「窓辺の猫」", "窓辺の猫"),
    # nothing to draw
    ("", None),
    ("  \n ", None),
    ('""', None),
    ("...", None),
    ("Enhanced prompt:", None),
    ("<|im_end|>", None),
    ("I can't help with that.", None),
    ("Sure! I'd be glad to help.", None),
]


@pytest.mark.parametrize(("answer", "prompt"), ANSWERS)
def test_prompt_in_answer(answer, prompt):
    assert parse_prompt(answer) == prompt


def test_cut_off_answer_is_malformed():
    assert parse_prompt("a fluffy orange cat on a", finished=False) is None


@pytest.mark.parametrize("part", [" ", "\n", "prompt ", "*", "<prompt>", "<think>", "```", '"', "1. ", "Sure! "])
def test_a_long_answer_takes_no_long_time(part):
    """A policy that has gone astray may write one thing over and over."""
    start = time.process_time()
    parse_prompt(f"prompt{part * 8000}x")
    assert time.process_time() - start < 1  # with one pattern that goes back for each character it is 2 to 20 s


@pytest.mark.parametrize("answer", ["KEEP", "keep", " KEEP.\n", '"KEEP"', "**KEEP**", "<think>it is fine</think>KEEP"])
def test_keep_is_the_users_prompt_as_it_is(answer):
    assert parse_answer(answer, "a cat,  sitting") == "a cat,  sitting"
    assert parse_answer(answer, "a cat", finished=False) is None


@pytest.mark.parametrize("answer", ["keep the cat", "a sign that says KEEP OUT", "keepsake"])
def test_a_prompt_with_that_word_is_a_prompt(answer):
    assert parse_answer(answer, "a cat") == answer


def test_parsing_twice_changes_nothing():
    for answer, prompt in ANSWERS:
        if prompt is not None:
            assert parse_prompt(prompt) == prompt, answer


def test_messages_hold_the_users_words():
    system, user = build_messages("a cat")
    assert system["role"] == "system" and "prompt" in system["content"]
    assert user == {"role": "user", "content": "a cat"}
