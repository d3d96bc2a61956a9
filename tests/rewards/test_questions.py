"""`questions`, on the tiny world's judge, and the column of the prompt file."""

import json
import random

import pytest
import torch
from conftest import TINY_WORLD
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

import users
import world
from brushup.prompts.dataset import load_prompts
from brushup.rewards.questions import with_needs
from support.rewards import load_reward


JUDGE = str(TINY_WORLD / "judge")


def ask_about(*questions):
    return [{"question": question, "answer": answer, "skill": skill} for question, answer, skill in questions]


@pytest.fixture(scope="module")
def scenes():
    rng = random.Random(0)
    return [world.random_scene(rng) for _ in range(60)]


@pytest.fixture(scope="module")
def images(scenes):
    return [world.draw_scene(scene, random.Random(1)) for scene in scenes]


def test_a_score_is_the_probability_of_the_answer_among_the_possible_ones(images):
    """Against one forward pass for each question, without padding."""
    processor = AutoProcessor.from_pretrained(JUDGE)
    model = Qwen2VLForConditionalGeneration.from_pretrained(JUDGE, dtype=torch.float32).eval()
    numbers = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    possible = {
        "yes": ["yes", "no"],
        "Two ": numbers,
        "white": [*world.COLORS, "gray", "pink", "brown"],
        "circle": None,
    }
    questions = ask_about(
        ("Is there a red circle?", "yes", "object"),
        ("How many squares are there?", "Two ", "count"),
        ("What color is the background?", "white", "color"),
        ("What shape is the red object?", "circle", "object"),
    )
    expected = []
    for item in questions:
        text = (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
            f"{item['question']} Answer in one word.<|im_end|>\n<|im_start|>assistant\n"
        )
        with torch.no_grad():
            logits = model(**processor(text=[text], images=images[:1], return_tensors="pt")).logits[0, -1]
        tokens = processor.tokenizer.convert_tokens_to_ids
        words = possible[item["answer"]]
        among = logits[tokens(words)] if words else logits
        expected.append((logits[tokens(item["answer"].strip().lower())] - among.logsumexp(-1)).exp().item())
    reward = load_reward("questions", model_name=JUDGE)
    assert reward.ask(images[:1], ["a cat"], [questions])[0] == pytest.approx(expected, abs=1e-4)


def test_the_score_is_the_mean_or_the_geometric_mean_and_has_a_part_for_each_skill(scenes, images):
    columns = [users.questions_of(scene) for scene in scenes[:8]]
    prompts = ["a cat"] * 8
    reward = load_reward("questions", model_name=JUDGE)
    answers = reward.ask(images[:8], prompts, columns)
    for row, scores, items in zip(reward(images[:8], prompts, prompts, columns), answers, columns, strict=True):
        colors = [score for score, item in zip(scores, items, strict=True) if item["skill"] == "color"]
        assert row["score"] == pytest.approx(sum(scores) / len(scores)) and set(row) == {
            "score", *(item["skill"] for item in items)
        }  # fmt: skip
        assert not colors or row["color"] == pytest.approx(sum(colors) / len(colors))
    geometric = load_reward("questions", model_name=JUDGE, average="geometric")(images[:1], ["a"], ["b"], columns[:1])
    assert geometric[0]["score"] == pytest.approx(torch.tensor(answers[0]).log().mean().exp().item(), rel=1e-4)


def test_a_prompt_without_questions_is_judged_as_by_vqa(images):
    prompts = ["a big red circle on a white background", "two blue squares"]
    mixed = [ask_about(("Is there a red circle?", "yes", "object")), None]
    scores = load_reward("questions", model_name=JUDGE)(images[:2], prompts, prompts, mixed)
    assert scores[1] == {
        "score": pytest.approx(load_reward("vqa", model_name=JUDGE)(images[1:2], prompts[1:], [""])[0])
    }


def test_the_tiny_judge_agrees_with_the_pixels(scenes, images):
    """On images of the scene that is asked about, and of a near one, whose answers differ."""
    near = [world.draw_scene(world.near_scene(scene, random.Random(2)), random.Random(3)) for scene in scenes]
    shown = [*images, *near]
    columns = [[{**row, "needs": []} for row in users.questions_of(scene)] for scene in [*scenes, *scenes]]
    scores = load_reward("questions", model_name=JUDGE, batch_size=64).ask(shown, [""] * len(shown), columns)
    agreed = [
        (score > 0.5) == (world.answer_question(image, row["question"]) == row["answer"])
        for image, found, rows in zip(shown, scores, columns, strict=True)
        for score, row in zip(found, rows, strict=True)
    ]
    assert sum(agreed) / len(agreed) >= 0.95


def test_another_average_is_refused():
    with pytest.raises(ValueError, match="average is 'median'; it must be mean or geometric"):
        load_reward("questions", model_name=JUDGE, average="median")


def test_a_question_counts_0_if_one_that_it_needs_was_answered_wrong():
    questions = [{"needs": []}, {"needs": [0]}, {"needs": [1]}, {}, {"needs": None}]
    assert with_needs([0.4, 0.9, 0.8, 0.7, 0.6], questions) == [0.4, 0.0, 0.0, 0.7, 0.6]
    assert with_needs([0.6, 0.9, 0.8, 0.7, 0.6], questions) == [0.6, 0.9, 0.8, 0.7, 0.6]


@pytest.mark.parametrize(
    ("questions", "fault"),
    [
        ({"Is it red?": "yes"}, "must be a list of questions, found"),
        (["Is it red?"], r"\[0\] must be a mapping"),
        ([{"question": "Is it red?"}], r"\[0\] has no text `answer`"),
        ([{"question": "Is it red?", "answer": "yes", "needs": [0]}], r"\[0\] needs 0: .* places of questions before"),
        ([{"question": "Is it red?", "answer": "yes", "skill": 1}], r"\[0\] has a `skill` that is no text"),
    ],
)
def test_wrong_questions_are_refused_with_their_line(tmp_path, questions, fault):
    file = tmp_path / "prompts.jsonl"
    good = {"user_prompt": "a cat", "questions": None}
    file.write_text("\n".join(json.dumps(row) for row in (good, {"user_prompt": "a dog", "questions": questions})))
    with pytest.raises(ValueError, match=f"prompts.jsonl:2: `questions` {fault}"):
        load_prompts(str(file))
