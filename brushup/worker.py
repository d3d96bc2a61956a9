"""The worker: draws render jobs and scores the pictures. `LocalWorker` does so in this process."""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from numbers import Real

import torch
from PIL import Image
from transformers.integrations import deepspeed as hf_deepspeed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from brushup.config import RenderConfig, RewardConfig
from brushup.originals import Originals
from brushup.render import Picture, Renderer, RenderFailure
from brushup.rewards import is_image_reward, label, load_reward


logger = logging.getLogger(__name__)

ImageReward = Callable[[list[Image.Image] | list[torch.Tensor], list[str], list[str]], list[float | None]]


@dataclass(frozen=True)
class RenderJob:
    """One picture to draw of `prompt` (the rewrite) from `seed`, and to score against `user_prompt`."""

    prompt: str
    user_prompt: str
    seed: int


@dataclass
class RenderResult:
    """What became of a job: a score for each image reward and the picture, or the `error` of the machine.

    `tokens` is the length of the prompt for each tokenizer of the generator; empty if nothing was drawn.
    """

    scores: dict[str, float] = field(default_factory=dict)
    image: Image.Image | None = None
    error: str | None = None
    tokens: dict[str, int] = field(default_factory=dict)


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
        image_rewards: `(images, user_prompts, prompts) -> scores`, by name. The images are PIL images; a reward whose
            class has `takes_pixels = True` gets tensors, uint8, (3, height, width), on the renderer's device.
        originals: where pictures of the users' own prompts are kept and looked up.
    """

    def __init__(self, renderer: Renderer, image_rewards: dict[str, ImageReward], originals: Originals | None = None):
        self.renderer = renderer
        self.image_rewards = image_rewards
        self.originals = originals
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="render")

    def __str__(self) -> str:
        return f"{self.renderer.generator} on {self.renderer.device}"

    @property
    def images_drawn(self) -> int:
        """Pictures drawn so far."""
        return self.renderer.images_drawn

    @property
    def token_limits(self) -> dict[str, int]:
        """How many tokens of a prompt each tokenizer of the generator reads."""
        return self.renderer.token_limits

    def submit(self, jobs: Sequence[RenderJob], return_images: bool = False) -> "Future[list[RenderResult]]":
        """Starts `score` and returns at once."""
        return self._thread.submit(self.score, jobs, return_images)

    def score(self, jobs: Sequence[RenderJob], return_images: bool = False) -> list[RenderResult]:
        """Draws and scores each job; equal jobs are drawn and scored once.

        Returns:
            A result for each job, in order. A job that failed has an `error` and no scores: all or nothing. A reward
            that raises, or does not return a number or None for each picture, fails all of them. Pictures are there
            if `return_images`.
        """
        unique = list(dict.fromkeys(jobs))
        made = dict(zip(unique, self._draw(unique), strict=True))
        prompts = list(dict.fromkeys(job.prompt for job in unique))
        tokens = dict(zip(prompts, self.renderer.count_tokens(prompts), strict=True))
        results = {
            job: RenderResult(error=picture.reason)
            if isinstance(picture, RenderFailure)
            else RenderResult(tokens=tokens[job.prompt])
            for job, picture in made.items()
        }
        drawn = [job for job in unique if results[job].error is None]
        pictures = [made[job] for job in drawn]
        for name, reward in self.image_rewards.items() if drawn else ():
            try:
                scores = scores_of(reward, pictures, drawn)
            except Exception as error:
                logger.exception("reward %r failed", name)
                what = str(error) if isinstance(error, WrongScores) else f"failed: {type(error).__name__}: {error}"
                for job in drawn:
                    results[job] = RenderResult(error=f"reward {name!r} {what}", tokens=tokens[job.prompt])
                break
            for job, score in zip(drawn, scores, strict=True):
                if score is None or not math.isfinite(score):
                    error = f"reward {name!r} gave {score} for this picture"
                    results[job] = RenderResult(error=error, tokens=tokens[job.prompt])
                elif results[job].error is None:
                    results[job].scores[name] = score
        if return_images:
            for job, picture in zip(drawn, pictures, strict=True):
                if results[job].error is None:
                    results[job].image = picture.image
        return [results[job] for job in jobs]

    def _draw(self, jobs: list[RenderJob]) -> list[Picture | RenderFailure]:
        if not self.originals:
            return self.renderer.draw([(job.prompt, job.seed) for job in jobs])
        own = [job for job in jobs if job.prompt == job.user_prompt]
        kept = {
            job: Picture.of(image, self.renderer.device)
            for job in own
            if (image := self.originals.get(job.prompt, job.seed))
        }
        missing = [job for job in jobs if job not in kept]
        drawn = zip(missing, self.renderer.draw([(job.prompt, job.seed) for job in missing]), strict=True)
        for job, picture in drawn:
            kept[job] = picture
            if job in own and not isinstance(picture, RenderFailure):
                self.originals.put(job.prompt, job.seed, picture.image)
        return [kept[job] for job in jobs]


class WrongScores(ValueError):
    """What a reward returned are not its scores; the message says what it returned."""


def scores_of(reward: ImageReward, pictures: list[Picture], jobs: list[RenderJob]) -> list[float | None]:
    """The score of each picture, drawn for `jobs`.

    Raises:
        WrongScores: another number of scores than pictures, or a score that is no number.
        Exception: any that the reward raises.
    """
    takes_pixels = getattr(reward, "takes_pixels", False)
    images = [picture.pixels if takes_pixels else picture.image for picture in pictures]
    returned = reward(images, [job.user_prompt for job in jobs], [job.prompt for job in jobs])
    scores = [score.item() if hasattr(score, "item") else score for score in returned]  # of numpy or torch
    if len(scores) != len(pictures):
        raise WrongScores(f"returned {len(scores)} scores for {len(pictures)} pictures")
    for score in scores:
        if not (score is None or isinstance(score, Real)):
            raise WrongScores(f"returned {score!r:.80} as a score, which is neither a number nor None")
    return scores


@contextmanager
def whole_on_each_rank() -> Iterator[None]:
    """Models that transformers loads meanwhile are not sharded, as under ZeRO-3 it would do with any."""
    zero3 = hf_deepspeed._hf_deepspeed_config_weak_ref
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = zero3


def load_worker(render: RenderConfig, rewards: RewardConfig) -> LocalWorker:
    """The generator and the image rewards that `reward_funcs` names, in this process, whole on each rank."""
    with whole_on_each_rank():
        renderer = Renderer.from_config(render)
        image_rewards = {
            label(name): load_reward(name, device=renderer.device, **rewards.kwargs_of_reward(name))
            for name in rewards.reward_funcs
            if is_image_reward(name)
        }
    originals = Originals(render.originals_cache, render) if render.originals_cache else None
    return LocalWorker(renderer, image_rewards, originals)
