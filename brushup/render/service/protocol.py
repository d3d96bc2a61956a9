"""The messages between training and the render service, as pydantic models: JSON, never pickle."""

import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from brushup.config import RenderConfig
from brushup.render.job import RenderJob, RenderResult
from brushup.rewards.registry import RewardSpec


MAX_JOBS = 256
MAX_JOBS_WITH_IMAGES = 32  # 1024 x 1024 pixels, lossless: about 2 MB each in base64
MAX_BODY_BYTES = 4 * 2**20

ImageFormat = Literal["none", "webp", "png"]


class ScoreRequest(BaseModel):
    """Jobs to render and score by rewards that the service was started with; images come back losslessly."""

    model_config = ConfigDict(extra="forbid")

    jobs: Annotated[list[RenderJob], Field(min_length=1, max_length=MAX_JOBS)]
    rewards: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=100)]
    images: ImageFormat = "none"

    @model_validator(mode="after")
    def _reply_fits(self) -> "ScoreRequest":
        if self.images != "none" and len(self.jobs) > MAX_JOBS_WITH_IMAGES:
            raise ValueError(f"at most {MAX_JOBS_WITH_IMAGES} jobs a request when images are asked for")
        return self


class ScoreReply(BaseModel):
    """A result for each job, in order."""

    results: list[RenderResult]


class Problem(BaseModel):
    """The body of an error."""

    detail: str


class Info(BaseModel):
    """How a service renders and scores; `settings` as `settings_of` returns them."""

    settings: dict[str, Any]
    rewards: list[str]
    token_limits: dict[str, int]
    render_timeout: float
    num_replicas: int


def settings_of(render: RenderConfig, rewards: Sequence[RewardSpec]) -> dict[str, Any]:
    """Return all that decides how an image is rendered and scored; training and the service must agree on it."""
    image_rewards = [spec for spec in rewards if spec.looks_at_images]
    return render.image_settings() | {
        "reward_funcs": sorted(spec.name for spec in image_rewards),
        "reward_kwargs": {spec.name: spec.kwargs for spec in image_rewards},
    }


def split_between_rewrites(jobs: Sequence[RenderJob], size: int) -> list[list[RenderJob]]:
    """Return the jobs in chunks of at most `size`; images of one rewrite, which some rewards compare, stay together.

    A rewrite with more than `size` images gets a chunk of its own; one with more than `MAX_JOBS_WITH_IMAGES` is cut.

    Args:
        jobs: the jobs of one rewrite follow each other.
        size: of a chunk.
    """
    chunks: list[list[RenderJob]] = []
    for _, group in itertools.groupby(jobs, key=lambda job: (job.user_prompt, job.prompt)):
        rewrite = list(group)
        if chunks and len(chunks[-1]) + len(rewrite) <= size:
            chunks[-1] += rewrite
        elif len(rewrite) <= MAX_JOBS_WITH_IMAGES:
            chunks.append(rewrite)
        else:
            chunks += [rewrite[start : start + size] for start in range(0, len(rewrite), size)]
    return chunks
