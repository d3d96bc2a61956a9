"""`questions`, on a tiny Qwen2-VL whose answers are random, and the column of the prompt file."""

import json
import random
from collections import defaultdict

import pytest
import torch
from conftest import TINY_WORLD
from PIL import Image
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

import users
import world
from brushup.prompts.dataset import load_prompts
from brushup.rewards.questions import with_needs
from support.judge import save_judge
from support.rewards import load_reward


WORDS = ["yes", "no", "zero", "one", "two", " Two", "2", "blue", "grey", "pink"]
COLORS = "black white gray grey red green yellow blue brown purple pink orange".split()
NUMBERS = "zero 0 one 1 two 2 three 3 four 4 five 5 six 6 seven 7 eight 8 nine 9 ten".split()
# Each with the words that count as the answer, and all words that could be one; None: any token.
ASKED = [
    ("Is it red?", "Yes", "color", ["yes"], ["yes", "no"]),
    ("How many are there?", "two", "count", ["two", "2"], NUMBERS),
    ("What color is it?", "gray", "color", ["gray", "grey"], COLORS),
    ("What is it?", "pinkish", None, None, None),
]
QUESTIONS = [{"question": asked, "answer": answer, "skill": skill} for asked, answer, skill, *_ in ASKED]


@pytest.fixture(scope="module")
def judge(tmp_path_factory) -> str:
    return save_judge(tmp_path_factory.mktemp("judge"), WORDS)


def test_a_score_is_the_probability_of_the_answer_among_the_possible_ones(judge):
    """Against one forward pass for each question, without padding, and every token decoded."""
    processor, image = AutoProcessor.from_pretrained(judge), Image.new("RGB", (32, 32), "red")
    model = Qwen2VLForConditionalGeneration.from_pretrained(judge).eval()
    tokenizer = processor.tokenizer
    read = [tokenizer.decode([token]).strip().lower() for token in range(len(tokenizer))]
    begins = {tokenizer(text).input_ids[0] for text in ("pinkish", " pinkish", "Pinkish", " Pinkish")}
    expected = []
    for asked, _, _, answers, possible in ASKED:
        text = (
            "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>"
            f"{asked} Answer in one word.<|im_end|>\n<|im_start|>assistant\n"
        )
        with torch.no_grad():
            logits = model(**processor(text=[text], images=[image], return_tensors="pt")).logits[0, -1]
        tokens = [token for token, word in enumerate(read) if word in answers] if answers else [*begins]
        among = [token for token, word in enumerate(read) if not possible or word in possible]
        expected.append((logits[tokens].logsumexp(-1) - logits[among].logsumexp(-1)).exp().item())
    assert max(expected) - min(expected) > 0.01
    reward = load_reward("questions", model_name=judge, batch_size=3)
    assert reward.ask([image], ["a cat"], [QUESTIONS])[0] == pytest.approx(expected, abs=1e-4)


def test_the_score_is_the_mean_or_the_geometric_mean_and_has_a_part_for_each_skill(judge):
    images, prompts = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")], ["a cat"] * 2
    reward = load_reward("questions", model_name=judge)
    columns = [QUESTIONS, QUESTIONS[:1]]
    (red, count, gray, other), alone = reward.ask(images, prompts, columns)
    both, single = reward(images, prompts, prompts, columns)
    assert both == pytest.approx(
        {"score": (red + count + gray + other) / 4, "color": (red + gray) / 2, "count": count}, abs=1e-5
    )
    assert single == pytest.approx({"score": alone[0], "color": alone[0]}, abs=1e-5)
    geometric = load_reward("questions", model_name=judge, average="geometric")(images, prompts, prompts, columns)
    assert geometric[0]["score"] == pytest.approx((red * count * gray * other) ** 0.25, abs=1e-5)
    with pytest.raises(ValueError, match="average is 'median'; it must be mean or geometric"):
        load_reward("questions", model_name=judge, average="median")


def test_a_prompt_without_questions_is_judged_as_by_vqa(judge):
    images = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    prompts = ["a red square", "a <|image_pad|> and a cat"]
    scores = load_reward("questions", model_name=judge)(images, prompts, prompts, [QUESTIONS, None])
    expected = load_reward("vqa", model_name=judge)(images[1:], prompts[1:], [""])
    assert scores[1] == {"score": pytest.approx(expected[0], abs=1e-5)}


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
        ([{"question": "Is it red?", "answer": "yes", "needs": 1}], r"\[0\] has `needs` that are no list: 1"),
        ([{"question": "Is it red?", "answer": "yes", "skill": 1}], r"\[0\] has a `skill` that is no text"),
    ],
)
def test_wrong_questions_are_refused_with_their_line(tmp_path, questions, fault):
    file = tmp_path / "prompts.jsonl"
    good = {"user_prompt": "a cat", "questions": None}
    file.write_text("\n".join(json.dumps(row) for row in (good, {"user_prompt": "a dog", "questions": questions})))
    with pytest.raises(ValueError, match=f"prompts.jsonl:2: `questions` {fault}"):
        load_prompts(str(file))


def test_the_tiny_judge_agrees_with_the_pixels():
    """Whether an image has the expected answer: images of the scene that is asked about, and of a near one.

    An answer that needs others counts as wrong to both if these are wrong: nobody can say where a missing shape is.
    """
    rng, shown, columns = random.Random(0), [], []
    for _ in range(60):
        scene = world.random_scene(rng)
        shown += [world.draw_scene(scene, rng), world.draw_scene(world.near_scene(scene, rng), rng)]
        columns += [users.questions_of(scene)] * 2
    judge = load_reward("questions", model_name=str(TINY_WORLD / "judge"), batch_size=64)
    agreed = defaultdict(list)
    for image, scores, rows in zip(shown, judge.ask(shown, [""] * len(shown), columns), columns, strict=True):
        answers = [float(world.answer_question(image, row["question"]) == row["answer"]) for row in rows]
        for score, is_right, row in zip(scores, with_needs(answers, rows), rows, strict=True):
            agreed[row["skill"]].append((score > 0.5) == is_right)
    assert agreed.keys() == {"object", "size", "color", "count", "relation", "background"}
    assert sum(map(sum, agreed.values())) >= 0.95 * sum(map(len, agreed.values()))
    assert all(sum(found) >= 0.9 * len(found) for found in agreed.values())
