"""The worker: draws render jobs and scores the pictures. `LocalWorker` does so in this process."""

import hashlib
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from PIL import Image

from brushup.render import Renderer, RenderFailure


ImageReward = Callable[[list[Image.Image], list[str], list[str]], list[float | None]]


@dataclass(frozen=True)
class RenderJob:
    """One picture to draw of `prompt` (the rewrite) from `seed`, and to score against `user_prompt`."""

    prompt: str
    user_prompt: str
    seed: int


@dataclass
class RenderResult:
    """What became of a job: a score for each image reward and the picture, or the `error` of the machine."""

    scores: dict[str, float] = field(default_factory=dict)
    image: Image.Image | None = None
    error: str | None = None


def paired_seeds(run_seed: int, step: int | str, user_prompt: str, count: int) -> list[int]:
    """The `count` seeds that every rewrite of `user_prompt` is drawn with at this step, in 0..2**32-1.

    All rewrites of a group share them, so a difference in reward comes from the words and not from the noise.
    """
    digests = (hashlib.blake2b(f"{run_seed}|{step}|{user_prompt}|{k}".encode(), digest_size=4) for k in range(count))
    return [int.from_bytes(digest.digest(), "big") for digest in digests]


def mean_scores(results: list[RenderResult]) -> dict[str, float]:
    """The mean of each image reward over the pictures of one rewrite; empty if there are none or one failed."""
    if not results or any(result.error for result in results):
        return {}
    return {name: sum(r.scores[name] for r in results) / len(results) for name in results[0].scores}


class LocalWorker:
    """Renderer and image rewards in this process, on a thread of their own.

    Args:
        renderer: draws the pictures.
        image_rewards: `(images, user_prompts, prompts) -> scores`, by name.
    """

    def __init__(self, renderer: Renderer, image_rewards: dict[str, ImageReward]):
        self.renderer = renderer
        self.image_rewards = image_rewards
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="render")

    @property
    def images_drawn(self) -> int:
        """Pictures drawn so far."""
        return self.renderer.images_drawn

    def submit(self, jobs: Sequence[RenderJob], return_images: bool = False) -> "Future[list[RenderResult]]":
        """Starts `score` and returns at once."""
        return self._thread.submit(self.score, jobs, return_images)

    def score(self, jobs: Sequence[RenderJob], return_images: bool = False) -> list[RenderResult]:
        """Draws and scores each job; equal jobs are drawn and scored once.

        Returns:
            A result for each job, in order. A job that failed has an `error` and no scores: all or nothing. Pictures
            are there if `return_images`.
        """
        unique = list(dict.fromkeys(jobs))
        pictures = self.renderer.render([(job.prompt, job.seed) for job in unique])
        results = {
            job: RenderResult(error=picture.reason)
            if isinstance(picture, RenderFailure)
            else RenderResult(image=picture)
            for job, picture in zip(unique, pictures, strict=True)
        }
        drawn = [job for job in unique if results[job].error is None]
        images = [results[job].image for job in drawn]
        for name, reward in self.image_rewards.items() if drawn else ():
            scores = reward(images, [job.user_prompt for job in drawn], [job.prompt for job in drawn])
            for job, score in zip(drawn, scores, strict=True):
                if score is None or not math.isfinite(score):
                    results[job] = RenderResult(error=f"reward {name!r} gave {score} for this picture")
                elif results[job].error is None:
                    results[job].scores[name] = score
        return [results[job] if return_images else replace(results[job], image=None) for job in jobs]
