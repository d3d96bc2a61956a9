"""Draws and scores one way of prompting (an `Arm`) on held-out prompts, from the same seeds as any other way."""

import asyncio
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from PIL import Image

from brushup.config import RewardConfig
from brushup.grid import can_write, labelled_grid
from brushup.rewards import is_image_reward, label, load_reward
from brushup.worker import LocalWorker, RenderJob, RenderResult, mean_scores, paired_seeds, whole_on_each_rank


EXAMPLES = 6  # prompts on a sheet to look at
PICTURES_KEPT = 9  # of the first prompts, in training: not each may do for the sheet
THUMBNAIL = 256  # pixels, the longer side of a picture that is kept
STATIC_SUFFIX = ", high quality, detailed, 4k"  # what people add by hand


@dataclass
class Arm:
    """What one way of prompting got, an item for each prompt; None where the machine failed a picture.

    `rewards` are by name, over the pictures of a prompt; `right` is the share of its pictures, 0..1, that the checker
    calls right; `tokens` is the length of the prompt for each tokenizer of the generator; `pictures` has the first
    picture of the first prompts, made smaller; `malformed` marks answers that the user's prompt stands in for.
    `errors` say what failed. `totals` are what the rewards come to (see `Objective.totals`), once `Validation` knows
    those of the users' own prompts.
    """

    prompts: list[str]
    rewards: list[dict[str, float] | None]
    pictures: list[Image.Image | None]
    right: list[float | None]
    tokens: list[dict[str, int]]
    malformed: list[bool]
    errors: list[str] = field(default_factory=list)
    totals: list[float | None] = field(default_factory=list)

    @classmethod
    def joined(cls, parts: "Sequence[Arm]") -> "Arm":
        """The arm over the prompts of all `parts`, in order."""
        return cls(*([item for part in parts for item in vars(part)[name.name]] for name in fields(cls)))

    def select(self, indices: Sequence[int]) -> "Arm":
        """The arm over some of the prompts."""
        columns = [name.name for name in fields(self) if name.name != "errors"]
        return Arm(**{name: [vars(self)[name][index] for index in indices] for name in columns})

    def scores(self, name: str) -> list[float | None]:
        """One reward of each prompt."""
        return [None if row is None else row[name] for row in self.rewards]

    def mean_rewards(self) -> dict[str, float]:
        scored = [row for row in self.rewards if row is not None]
        return {name: float(np.mean([row[name] for row in scored])) for name in scored[0]} if scored else {}

    def checker_accuracy(self) -> float | None:
        """The share of right pictures; None without a checker."""
        checked = [share for share in self.right if share is not None]
        return float(np.mean(checked)) if checked else None


def evaluate_prompts(
    prompts: Sequence[str],
    rows: Sequence[dict],
    worker: LocalWorker,
    text_rewards: dict[str, Callable],
    images_per_prompt: int,
    seed: int,
    checker: Callable | None = None,
    malformed: Sequence[bool] | None = None,
    answers: Sequence[str | None] | None = None,
    pictures_kept: int = PICTURES_KEPT,
) -> Arm:
    """Draws `prompts`, one for each validation row, and scores them against the rows' own `user_prompt`s.

    It raises nothing that only one of several ranks could meet: whatever fails is in the arm's `errors`.

    Args:
        rows: have `user_prompt`, `prompt`, and `scene` if there is a checker.
        text_rewards: rewards with TRL's signature, by name.
        images_per_prompt: pictures a prompt; its image rewards are the mean over them.
        seed: each arm of a comparison gets the same, and so the same noise for the same row.
        checker: `(images, scene) -> right or wrong` of each picture.
        malformed: marks prompts that stand in for a malformed answer.
        answers: what the policy answered, for rewards that look at it; None if no policy wrote the prompts.
        pictures_kept: of so many rows the first picture is kept.
    """
    jobs = [
        RenderJob(prompt, row["user_prompt"], drawn_from)
        for prompt, row in zip(prompts, rows, strict=True)
        for drawn_from in paired_seeds(seed, "validation", row["user_prompt"], images_per_prompt)
    ]
    try:
        results = worker.submit(jobs, return_images=True).result() if jobs else []
        by_row = [results[start : start + images_per_prompt] for start in range(0, len(results), images_per_prompt)]
        tokens = [some[0].tokens for some in by_row]
        scores = text_scores(text_rewards, prompts, rows, tokens, answers or [None] * len(rows))
        right = [_share_right(some, row, checker) for some, row in zip(by_row, rows, strict=True)]
    except Exception as error:
        by_row = [[RenderResult(error=f"{type(error).__name__}: {error}")]] * len(rows)
        scores, right = [{}] * len(rows), [None] * len(rows)
    return Arm(
        prompts=list(prompts),
        rewards=[
            None if any(r.error for r in some) or None in texts.values() else mean_scores(some) | texts
            for some, texts in zip(by_row, scores, strict=True)
        ],
        pictures=[_thumbnail(some[0].image) if row < pictures_kept else None for row, some in enumerate(by_row)],
        right=right,
        tokens=[some[0].tokens for some in by_row],
        malformed=list(malformed or [False] * len(rows)),
        errors=[result.error for some in by_row for result in some if result.error],
    )


@dataclass
class TextReward:
    """A text reward that says which it is when it fails.

    Raises:
        RuntimeError: when called: it raised, or did not return a number or None for each completion.
    """

    name: str
    function: Callable

    def __call__(self, completions: list, **columns: Any) -> list[float | None]:
        try:
            scores = self.function(completions=completions, **columns)
            scores = list(asyncio.run(scores) if inspect.isawaitable(scores) else scores)
            scores = [None if score is None else float(score) for score in scores]
        except Exception as error:
            raise RuntimeError(f"reward {self.name!r} failed: {type(error).__name__}: {error}") from error
        if len(scores) != len(completions):
            raise RuntimeError(f"reward {self.name!r} returned {len(scores)} scores for {len(completions)} rewrites")
        return scores


def load_text_rewards(rewards: RewardConfig) -> dict[str, Callable]:
    """The text rewards that `reward_funcs` names, by label; the worker loads the image rewards."""
    with whole_on_each_rank():
        return {
            label(name): TextReward(label(name), load_reward(name, **rewards.kwargs_of_reward(name)))
            for name in rewards.reward_funcs
            if not is_image_reward(name)
        }


def _thumbnail(image: Image.Image | None) -> Image.Image | None:
    if image:
        image = image.copy()
        image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def text_scores(
    rewards: dict[str, Callable],
    prompts: Sequence[str],
    rows: Sequence[dict],
    tokens: list[dict[str, int]],
    answers: Sequence[str | None],
) -> list[dict[str, float | None]]:
    """The text rewards of each row, by name: of `prompts`, as answers to the rows' `user_prompt`.

    Args:
        rows: as for `evaluate_prompts`; all columns reach the rewards.
        tokens: the length of each prompt for each tokenizer of the generator.
        answers: what the policy answered; None where no policy wrote the prompt.
    """
    columns = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    columns |= {
        "prompts": columns.pop("prompt", []),
        "completions": [[{"role": "assistant", "content": prompt}] for prompt in prompts],
        "rewrite_tokens": tokens,
        "answer": list(answers),
    }
    scores = {name: reward(**columns) for name, reward in rewards.items()} if rows else {}
    return [{name: some[index] for name, some in scores.items()} for index in range(len(rows))]


def _share_right(results: list[RenderResult], row: dict, checker: Callable | None) -> float | None:
    images = [result.image for result in results if result.image]
    return float(np.mean(checker(images, [row["scene"]] * len(images)))) if checker and images else None


def before_after_sheet(before: Arm, after: Arm) -> Image.Image:
    """The first prompts of which both pictures were drawn: above drawn from `before`, below from `after`.

    Prompts in letters that this machine has no font for are passed over.
    """
    drawn = [i for i, pair in enumerate(zip(before.pictures, after.pictures, strict=True)) if None not in pair]
    shown = [i for i in drawn if can_write(before.prompts[i]) and can_write(after.prompts[i])] or drawn
    titles = ("drawn from the user's prompt", "drawn from the rewrite")
    lines = [
        (title, [(arm.pictures[i], arm.prompts[i]) for i in shown[:EXAMPLES]])
        for title, arm in zip(titles, (before, after), strict=True)
    ]
    return labelled_grid(lines)
