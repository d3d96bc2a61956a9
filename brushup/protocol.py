"""What goes over HTTP between training and the render service, as pydantic models: JSON, never pickle."""

import base64
import io
import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from brushup.config import RenderConfig, RewardConfig
from brushup.rewards import is_image_reward, label
from brushup.worker import RenderJob, RenderResult


MAX_JOBS = 256
MAX_JOBS_WITH_IMAGES = 32  # 1024 x 1024 pixels, lossless: about 2 MB each in base64
MAX_PROMPT_CHARS = 8_000
MAX_BODY_BYTES = 4 * 2**20
MAX_IMAGE_PIXELS = 2**26  # 8192 x 8192

Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
ImageFormat = Literal["none", "webp", "png"]


class Job(BaseModel):
    """A `RenderJob`."""

    model_config = ConfigDict(extra="forbid")

    prompt: Prompt
    user_prompt: Prompt
    seed: Annotated[int, Field(ge=0, lt=2**64, strict=True)]  # strict: neither true nor "1"


class ScoreRequest(BaseModel):
    """`rewards` are names that the service was started with; pictures come back losslessly, if asked for."""

    model_config = ConfigDict(extra="forbid")

    jobs: Annotated[list[Job], Field(min_length=1, max_length=MAX_JOBS)]
    rewards: Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=100)]
    images: ImageFormat = "none"

    @model_validator(mode="after")
    def _reply_fits(self) -> "ScoreRequest":
        if self.images != "none" and len(self.jobs) > MAX_JOBS_WITH_IMAGES:
            raise ValueError(f"at most {MAX_JOBS_WITH_IMAGES} jobs a request when pictures are asked for")
        return self


class Result(BaseModel):
    """A `RenderResult`; `image` is a WebP or PNG file in base64."""

    scores: dict[str, float] = {}
    image: str | None = None
    error: str | None = None
    tokens: dict[str, int] = {}

    @classmethod
    def of(cls, result: RenderResult, rewards: list[str], image_format: ImageFormat) -> "Result":
        image = None
        if result.image and image_format != "none":
            file = io.BytesIO()
            result.image.save(file, image_format, lossless=True)
            image = base64.b64encode(file.getvalue()).decode()
        scores = {name: score for name, score in result.scores.items() if name in rewards}
        return cls(scores=scores, image=image, error=result.error, tokens=result.tokens)

    def to_render_result(self) -> RenderResult:
        """Raises a ValueError for a picture that would fill the memory when it is unpacked."""
        image = None
        if self.image:
            image = Image.open(io.BytesIO(base64.b64decode(self.image)), formats=["WEBP", "PNG"])
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise ValueError(
                    f"the picture has {image.width} x {image.height} pixels, more than {MAX_IMAGE_PIXELS}"
                )
            image = image.convert("RGB")
        return RenderResult(self.scores, image, self.error, self.tokens)


class ScoreReply(BaseModel):
    """A result for each job of the request, in order."""

    results: list[Result]


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str


class Info(BaseModel):
    """What the service is: its settings, and what it found out about its generator."""

    settings: dict[str, Any]
    rewards: list[str]
    token_limits: dict[str, int]
    render_timeout: float
    num_replicas: int


def settings_of(render: RenderConfig, rewards: RewardConfig) -> dict[str, Any]:
    """What decides how a picture is drawn and scored: training and the service must agree on all of it."""
    image_rewards = [name for name in rewards.reward_funcs if is_image_reward(name)]
    return render.picture_settings() | {
        "reward_funcs": sorted(map(label, image_rewards)),
        "reward_kwargs": {label(name): rewards.kwargs_of_reward(name) for name in image_rewards},
    }


def whole_rewrites(jobs: Sequence[RenderJob], size: int) -> list[list[RenderJob]]:
    """Cuts jobs into parts of at most `size`, but not between the pictures of one rewrite: rewards may compare them.

    These follow each other in `jobs`. Up to `MAX_JOBS_WITH_IMAGES` are a part by themselves where they are more than
    `size`; only more than that are cut, too.
    """
    parts: list[list[RenderJob]] = []
    for _, pictures in itertools.groupby(jobs, key=lambda job: (job.user_prompt, job.prompt)):
        pictures = list(pictures)
        if parts and len(parts[-1]) + len(pictures) <= size:
            parts[-1] += pictures
        elif len(pictures) <= MAX_JOBS_WITH_IMAGES:
            parts.append(pictures)
        else:
            parts += [pictures[start : start + size] for start in range(0, len(pictures), size)]
    return parts


def to_job(job: RenderJob) -> Job:
    return Job(prompt=job.prompt, user_prompt=job.user_prompt, seed=job.seed)
