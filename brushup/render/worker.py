"""The worker in this process: renders jobs and scores their images."""

import json
import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from numbers import Real

import torch
from PIL import Image

from brushup.common import whole_on_each_rank
from brushup.config import RenderConfig
from brushup.render.job import RenderJob, RenderResult
from brushup.render.renderer import RenderedImage, Renderer, RenderFailure
from brushup.rewards.guard import GuardedImageReward
from brushup.rewards.registry import RewardSpec, columns_read


logger = logging.getLogger(__name__)

Score = float | None | dict[str, float]  # with "score" and its parts, by name
ImageReward = Callable[..., list[Score]]


class WrongScores(ValueError):
    """A reward returned something other than scores; the message says what it returned."""


class LocalWorker:
    """A renderer and image rewards in this process, on a separate thread.

    Args:
        renderer: renders the images.
        image_rewards: `(images, user_prompts, prompts, **columns) -> scores`, by name (see `registry`). The images are
            PIL images; a reward whose class has `takes_pixels = True` gets tensors, uint8, (3, height, width), on the
            renderer's device.
        eval_renderer: renders the jobs `for_evaluation`; default the same.

    Attributes:
        seconds: spent so far, by "render" and "score".
    """

    is_remote = False

    def __init__(
        self, renderer: Renderer, image_rewards: dict[str, ImageReward], eval_renderer: Renderer | None = None
    ):
        self.renderer = renderer
        self.eval_renderer = eval_renderer or renderer
        self.image_rewards = image_rewards
        self.columns = sorted({name for reward in image_rewards.values() for name in columns_read(reward)})
        self.seconds = {"render": 0.0, "score": 0.0}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="render")

    def __str__(self) -> str:
        return f"{self.renderer.generator} on {self.renderer.device}"

    @property
    def images_drawn(self) -> int:
        """Images rendered so far."""
        return sum(renderer.images_drawn for renderer in {self.renderer, self.eval_renderer})

    @property
    def token_limits(self) -> dict[str, int]:
        """Tokens of a prompt that each tokenizer of the generator reads."""
        return self.renderer.token_limits

    def submit(self, jobs: Sequence[RenderJob], return_images: bool = False) -> "Future[list[RenderResult]]":
        """Start `score` and return at once."""
        return self._thread.submit(self.score, jobs, return_images)

    def score(self, jobs: Sequence[RenderJob], return_images: bool = False) -> list[RenderResult]:
        """Render and score each job; equal jobs are rendered and scored once.

        Returns:
            A result for each job, in order. A job that failed has an `error` and no scores: all or nothing. A reward
            that raises, or does not return a number or None for each image, fails all of them. Images are there if
            `return_images`.
        """
        by_renderer: dict[Renderer, list[RenderJob]] = defaultdict(list)
        for job in dict.fromkeys(jobs):
            by_renderer[self.eval_renderer if job.for_evaluation else self.renderer].append(job)
        results: dict[RenderJob, RenderResult] = {}
        for renderer, alike in by_renderer.items():
            results |= self._score_alike(renderer, alike, return_images)
        return [results[job] for job in jobs]

    def _score_alike(
        self, renderer: Renderer, unique: list[RenderJob], return_images: bool
    ) -> dict[RenderJob, RenderResult]:
        """Return the results of different jobs of one renderer."""
        start = time.perf_counter()
        rendered = dict(zip(unique, renderer.draw([(job.prompt, job.seed) for job in unique]), strict=True))
        self.seconds["render"] += time.perf_counter() - start
        prompts = list(dict.fromkeys(job.prompt for job in unique))
        tokens = dict(zip(prompts, self.renderer.count_tokens(prompts), strict=True))
        images = {job: item for job, item in rendered.items() if isinstance(item, RenderedImage)}
        start = time.perf_counter()
        scores, error = self._score_images(images)
        self.seconds["score"] += time.perf_counter() - start
        results = {}
        for job, item in rendered.items():
            if isinstance(item, RenderFailure):
                results[job] = RenderResult.failed(item.reason, item.kind)
                continue
            by_name = {name: values[job] for name, values in scores.items() if job in values}
            unscored = [f"reward {n!r} gave {s} for this image" for n, s in by_name.items() if not _is_finite(s)]
            wrong = error or next(iter(unscored), None)
            if wrong:
                results[job] = RenderResult.failed(wrong, "reward", tokens=tokens[job.prompt])
            else:
                image = item.image if return_images else None
                results[job] = RenderResult(by_name, image, tokens=tokens[job.prompt])
        return results

    def _score_images(
        self, rendered: dict[RenderJob, RenderedImage]
    ) -> tuple[dict[str, dict[RenderJob, float | None]], str | None]:
        """Return the scores of each reward, and the error of a reward that failed, which fails all images."""
        scores: dict[str, dict[RenderJob, float | None]] = {}
        if not rendered:
            return scores, None
        jobs = list(rendered)
        pixels = [image.pixels for image in rendered.values()]
        images: list[Image.Image] | None = None
        for name, reward in self.image_rewards.items():
            takes_pixels = getattr(reward, "takes_pixels", False)
            if not takes_pixels and images is None:
                images = [image.image for image in rendered.values()]
            try:
                # Rewards that share a backbone know by the list that the images are the same.
                values = scores_of(reward, pixels if takes_pixels else images, jobs)
            except Exception as error:
                logger.exception("reward %r failed", name)
                reason = str(error) if isinstance(error, WrongScores) else f"failed: {type(error).__name__}: {error}"
                return {}, f"reward {name!r} {reason}"
            for job, value in zip(jobs, values, strict=True):
                parts = value if isinstance(value, dict) else {"score": value}
                for part, score in parts.items():
                    scores.setdefault(name if part == "score" else f"{name}/{part}", {})[job] = score
        pixels.clear()  # a backbone keeps the list until the next call, and would keep the images with it
        return scores, None


def _is_finite(score: float | None) -> bool:
    return score is not None and math.isfinite(score)


def scores_of(
    reward: ImageReward, images: list[Image.Image] | list[torch.Tensor], jobs: list[RenderJob]
) -> list[Score]:
    """Return the score of each image, rendered for these jobs.

    Raises:
        WrongScores: another number of scores than images, or a score that is no number.
        Exception: any that the reward raises.
    """
    rows = [json.loads(job.columns) for job in jobs]
    columns = {name: [row.get(name) for row in rows] for name in columns_read(reward)}
    returned = reward(images, [job.user_prompt for job in jobs], [job.prompt for job in jobs], **columns)
    scores = [score.item() if hasattr(score, "item") else score for score in returned]  # of numpy or torch
    if len(scores) != len(images):
        raise WrongScores(f"returned {len(scores)} scores for {len(images)} images")
    for score in scores:
        parts = score if isinstance(score, dict) else {"score": score}
        if "score" not in parts or not all(part is None or isinstance(part, Real) for part in parts.values()):
            raise WrongScores(f"returned {score!r:.80} as a score, which is neither a number nor None")
    return scores


def load_image_rewards(render: RenderConfig, rewards: Sequence[RewardSpec]) -> dict[str, ImageReward]:
    """Return the image rewards among `rewards` by name, whole on each rank, on the device that renders."""
    with whole_on_each_rank():
        image_rewards = {spec.name: spec.load(render.device) for spec in rewards if spec.looks_at_images}
    for name in [spec.name for spec in rewards if spec.looks_at_images and spec.is_users]:
        image_rewards[name] = GuardedImageReward(image_rewards[name], render.worker_timeout)
    return image_rewards


def load_worker(render: RenderConfig, rewards: Sequence[RewardSpec]) -> LocalWorker:
    """Return a worker with the generator and the image rewards among `rewards`, whole on each rank."""
    with whole_on_each_rank():
        renderer = Renderer(render)
        eval_renderer = renderer
        if render.eval_render_kwargs:
            eval_renderer = renderer.with_kwargs("eval_render_kwargs", render.eval_render_kwargs)
    return LocalWorker(renderer, load_image_rewards(render, rewards), eval_renderer)
