"""`questions`: needs, averages, and the column of the prompt file."""

import json

import pytest

from brushup.prompts.dataset import load_prompts
from brushup.rewards.questions import with_needs


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
