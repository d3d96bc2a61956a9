"""A rollout: the completions of a generation batch, on their way to the worker and back with their scores."""

import logging
import math
import time
from collections.abc import Callable, Container, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from trl.data_utils import prepare_multimodal_messages

from brushup.render.job import RenderJob, RenderResult, columns_of, mean_scores


logger = logging.getLogger(__name__)


class ImageReward:
    """A reward for TRL that reads the worker's scores from the column `image_scores`. It never raises.

    Attributes:
        error: of the last call; None if it went well.
    """

    def __init__(self, name: str):
        self.__name__ = name
        self.error: str | None = None

    def __call__(self, image_scores: list[dict[str, float]], **columns: Any) -> list[float | None]:
        """Return a score for each row; 0 for one without scores, which `ScoredBatch` marks malformed or failed."""
        self.error = None
        if any(scores and self.__name__ not in scores for scores in image_scores):
            self.error = f"the worker gave no score of the reward {self.__name__!r}"
            return [None] * len(image_scores)
        return [scores[self.__name__] if scores else 0.0 for scores in image_scores]


def prompts_of(rows: list[dict]) -> list:
    """Return the messages of the rows, with their images, as `GRPOTrainer._generate_and_score_completions` does."""
    prompts = [row["prompt"] for row in rows]
    if "images" in rows[0]:
        images = [row["images"] for row in rows]
    elif "image" in rows[0]:
        images = [[row["image"]] if row["image"] is not None else None for row in rows]
    else:
        return prompts
    return [prepare_multimodal_messages(p, images=i) for p, i in zip(prompts, images, strict=True)]


def current_prompt(row: dict) -> str:
    """Return the prompt that a rewrite replaces, and that KEEP leaves as it is: the draft, or the user's prompt."""
    return row.get("draft") or row["user_prompt"]


def jobs_of(
    prompts: Iterable[tuple[str, dict]], seeds: Callable[[str], list[int]], columns: Sequence[str]
) -> list[RenderJob]:
    """Return the jobs of prompts, each with the row that it is for: all rewrites of a user prompt share the seeds of
    it. `columns` of the row go with the job."""
    return [
        RenderJob(prompt, row["user_prompt"], seed, columns=columns_of(row, columns))
        for prompt, row in prompts
        for seed in seeds(row["user_prompt"])
    ]


def new_prompts(
    rewrites: Iterable[str | None], rows: Iterable[dict], known: Container[tuple[str, str]]
) -> list[tuple[str, dict]]:
    """Return the rewrites to render, each with its row: all that are neither malformed nor a draft as it is."""
    pairs = zip(rewrites, rows, strict=True)
    return [(new, row) for new, row in pairs if new is not None and (new, row["user_prompt"]) not in known]


@dataclass
class Rollout:
    """The part of one generation batch on this rank: written, and on its way to the worker.

    Attributes:
        rows: the data set's rows, one for each completion; in the second turn as requests to revise their `draft`.
        step: the optimizer step that trains on it.
        metrics: that TRL logs of it once it is trained on, by name.
        generated: the return value of `GRPOTrainer._generate`.
        rewrites: the prompts to render; None for a malformed completion.
        token_count: the tokens that the loss is over, of all ranks; float, ().
        submit: sends all jobs to the worker, and returns `images`.
        current_prompts: the prompts to replace (see `current_prompt`) that are rendered as well, each with its user
            prompt. One that a rewrite keeps is rendered once.
        drafts: the results of the drafts, which are rendered already, by draft and user prompt.
        keeps_images: whether the results carry their images.
        images: the results of the `new_prompts`, `images_per_prompt` of each, then those of the current prompts.
        submitted: when it was first sent to the worker, as `time.perf_counter` tells it.
    """

    rows: list[dict]
    step: int
    metrics: dict[str, list[float]]
    generated: tuple
    rewrites: list[str | None]
    token_count: torch.Tensor
    submit: "Callable[[], Future[list[RenderResult]]]"
    current_prompts: list[tuple[str, str]]
    drafts: dict[tuple[str, str], list[RenderResult]]
    keeps_images: bool
    submitted: float = field(default_factory=time.perf_counter)

    def __post_init__(self):
        self.render()

    def render(self) -> None:
        """Send all jobs to the worker, once more if it failed all of them; the seeds are the same."""
        self.images = self.submit()


@dataclass
class RenderedRows:
    """The outcome of a rollout's images, one item for each row of this rank.

    Attributes:
        results: of each row's images; empty for a malformed completion.
        before: the results of each of the rollout's current prompts.
        errors: of the machine.
        outcomes: the error of each image that was asked for after the completions, None for one that is there.
        seconds: from the submission to the last image.
    """

    results: list[list[RenderResult]]
    before: dict[tuple[str, str], list[RenderResult]]
    errors: list[str]
    outcomes: list[str | None]
    seconds: float

    @classmethod
    def collect(cls, rollout: Rollout, images_per_prompt: int) -> "RenderedRows":
        """Wait for the rollout's images. It never raises: an error is a failed result, on this rank alone."""
        count = len(new_prompts(rollout.rewrites, rollout.rows, rollout.drafts))
        try:
            results = rollout.images.result()
        except Exception as error:
            results = [RenderResult.failed(error)] * (count * images_per_prompt)
        rows = [results[start : start + images_per_prompt] for start in range(0, len(results), images_per_prompt)]
        rewritten, by_row = iter(rows[:count]), []
        for rewrite, row in zip(rollout.rewrites, rollout.rows, strict=True):
            kept = rollout.drafts.get((rewrite, row["user_prompt"]))
            by_row.append([] if rewrite is None else kept or next(rewritten))
        errors = [result.error for row in [*by_row, *rollout.drafts.values()] for result in row if result.error]
        before = dict(zip(rollout.current_prompts, rows[count:], strict=False))  # none if nothing was rendered
        before |= rollout.drafts
        outcomes = [result.error for row in rows[:count] for result in row]
        return cls(by_row, before, errors, outcomes, time.perf_counter() - rollout.submitted)

    @property
    def scores(self) -> list[dict[str, float]]:
        """The image rewards of each row, averaged over its images; empty if it is malformed or failed."""
        return [mean_scores(results) for results in self.results]

    @property
    def tokens(self) -> list[dict[str, int]]:
        """The length of each rewrite for each tokenizer of the generator; empty if nothing was rendered."""
        return [results[0].tokens if results else {} for results in self.results]

    def draft_results(self, row: dict) -> list[RenderResult]:
        """Return the results of the draft that a row revises; empty in the first turn."""
        return self.before.get((current_prompt(row), row["user_prompt"]), []) if row.get("draft") else []

    def gains(self, rows: Sequence[dict], names: Sequence[str]) -> np.ndarray:
        """Return each row's image rewards minus those of its current prompt, (rows, rewards); NaN where unknown."""
        scores_before = {prompt: mean_scores(results) for prompt, results in self.before.items()}
        before = [scores_before.get((current_prompt(row), row["user_prompt"]), {}) for row in rows]
        return np.array(
            [
                [scores.get(name, math.nan) - old.get(name, math.nan) for name in names]
                for scores, old in zip(self.scores, before, strict=True)
            ]
        )
