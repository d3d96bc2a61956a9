"""`questions`: whether a vision-language model finds what the user asked for, bit by bit. Higher is better, 0..1.

The column `questions` of the prompt file has a list for each prompt: `question`, the expected `answer`, `needs` (the
places in the list, from 0, of questions that must be right first) and `skill`. Each question is asked with "Answer in
one word.", and its score is the probability of the expected answer among the possible ones: yes and no; the numbers
from zero to ten; the colors; for any other answer all tokens that there are. The reward is the mean of the scores, or
their geometric mean, which one missing thing pulls to 0: Soft-TIFA of GenEval 2 (Kamath et al. 2025, arXiv
2512.16853). A question counts 0 if a question that it `needs` was answered wrong, that is with a probability
under 0.5 (Davidsonian scene graph, Cho et al. 2023, arXiv 2310.18235). A prompt without questions is judged as by
`vqa`, with the same model.

Default model: Qwen/Qwen2-VL-2B-Instruct (Apache-2.0, 2.2B parameters, about 4.5 GB in bfloat16 plus what a batch
takes); GenEval 2 takes Qwen3-VL-8B. Any image-text model does that has a chat template, and the answers among its
tokens. It runs once for each question, in batches over all images: 4 to 13 times as often as `vqa` on the known
benchmarks (recipes/benchmark.py makes their questions).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from PIL import Image

from brushup.rewards.image_text_model import DOES_IT_SHOW, Answer, ImageTextModel


ASK = "{} Answer in one word."
NUMBERS = [
    *(["zero", "0"], ["one", "1"], ["two", "2"], ["three", "3"], ["four", "4"], ["five", "5"], ["six", "6"]),
    *(["seven", "7"], ["eight", "8"], ["nine", "9"], ["ten"]),  # "10" begins with "1"
]
# The eleven basic color terms (Berlin and Kay 1969).
COLORS = [
    *(["black"], ["white"], ["gray", "grey"], ["red"], ["green"], ["yellow"], ["blue"], ["brown"], ["purple"]),
    *(["pink"], ["orange"]),
]
CLOSED_SETS = [["yes"], ["no"]], NUMBERS, COLORS


class QuestionsReward:
    """A score of images by questions about what the user asked for.

    Args:
        model_name: an image-text model of transformers: Hub id or folder.
        average: `mean`, or `geometric`: a single wrong answer pulls it to 0.
        dtype: name of the torch dtype; default bfloat16 on cuda, else float32.
        device: default cuda, else mps, else cpu.
        batch_size: questions asked at once.

    Raises:
        ValueError: the model's tokenizer has no single token for yes or for no, the model has no chat template, or
            `average` is neither.
    """

    def __init__(
        self,
        model_name: str = "Qwen/Qwen2-VL-2B-Instruct",
        average: Literal["mean", "geometric"] = "mean",
        dtype: str | None = None,
        device: str | None = None,
        batch_size: int = 16,
    ):
        if average not in ("mean", "geometric"):
            raise ValueError(f"reward_kwargs of 'questions': average is {average!r}; it must be mean or geometric")
        self.average = average
        self.model = ImageTextModel("questions", model_name, dtype, device, batch_size)
        yes, no = self.model.tokens("yes"), self.model.tokens("no")
        self._answers = {"yes": (yes, yes + no), "no": (no, yes + no)}

    def __call__(
        self,
        images: list[Image.Image],
        user_prompts: list[str],
        prompts: list[str],
        questions: list[list[dict] | None],
    ) -> list[dict[str, float]]:
        """Return each image's `score`, and the mean score of the questions of each skill; `prompts` do not count."""
        rows = []
        for scores, items in zip(self.ask(images, user_prompts, questions), questions, strict=True):
            by_skill = defaultdict(list)
            for score, item in zip(scores, items or (), strict=bool(items)):
                by_skill[item.get("skill")].append(score)
            rows.append({skill: _mean(values) for skill, values in by_skill.items() if skill})
            rows[-1]["score"] = _mean(scores) if self.average == "mean" else math.prod(scores) ** (1 / len(scores))
        return rows

    def ask(
        self, images: Sequence[Image.Image], user_prompts: Sequence[str], questions: Sequence[list[dict] | None]
    ) -> list[list[float]]:
        """Return the score of each question to each image, 0..1; of a prompt without questions that of `vqa`."""
        asked = [
            [(ASK.format(item["question"]), self._answer(item["answer"])) for item in items or ()]
            or [(DOES_IT_SHOW.format(user_prompt), self._answer("yes"))]
            for items, user_prompt in zip(questions, user_prompts, strict=True)
        ]
        shown = [image for image, row in zip(images, asked, strict=True) for _ in row]
        found = iter(self.model.probabilities(shown, [question for row in asked for question in row]))
        return [
            with_needs([next(found) for _ in row], items or ()) for row, items in zip(asked, questions, strict=True)
        ]

    def _answer(self, expected: str) -> Answer:
        """Return the tokens of an expected answer, and of all that are possible in its place."""
        expected = expected.strip().lower()
        if expected not in self._answers:
            closed = next((answers for answers in CLOSED_SETS if any(expected in words for words in answers)), [])
            words = next((words for words in closed if expected in words), [expected])
            tokens = self.model.first_tokens(words)
            possible = {token for other in closed for token in self.model.tokens_that_read(other)}
            self._answers[expected] = tokens, sorted({*tokens, *possible}) if closed else None
        return self._answers[expected]


def with_needs(scores: Sequence[float], questions: Sequence[dict]) -> list[float]:
    """Return the scores, those as 0 whose question needs one that has less than 0.5; `questions` may be empty."""
    counted = list(scores)
    for place, question in enumerate(questions):
        if any(counted[need] < 0.5 for need in question.get("needs") or ()):
            counted[place] = 0.0
    return counted


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
