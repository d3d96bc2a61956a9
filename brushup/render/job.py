"""Render jobs, their results, and the worker that turns one into the other."""

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol

from PIL import Image
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer, SerializationInfo, StrictBool, WithJsonSchema

from brushup.common import MAX_PROMPT_CHARS


MAX_IMAGE_PIXELS = 2**26  # 8192 x 8192


def encode_image(image: Image.Image | None, info: SerializationInfo) -> str | None:
    """Return the image as a lossless file in base64; the context names its format, "webp" or "png"."""
    if image is None:
        return None
    file = io.BytesIO()
    image.save(file, info.context["image_format"], lossless=True)
    return base64.b64encode(file.getvalue()).decode()


def decode_image(image: Any) -> Any:
    """Return the image of a file in base64; raise a ValueError if it would fill the memory when it is unpacked."""
    if not isinstance(image, str):
        return image
    unpacked = Image.open(io.BytesIO(base64.b64decode(image)), formats=["WEBP", "PNG"])
    if unpacked.width * unpacked.height > MAX_IMAGE_PIXELS:
        size = f"{unpacked.width} x {unpacked.height}"
        raise ValueError(f"the image has {size} pixels, more than {MAX_IMAGE_PIXELS}")
    return unpacked.convert("RGB")


def json_text(columns: Any) -> str:
    """Return the JSON text of an object; raise a ValueError for any other value."""
    if not isinstance(columns, dict):
        raise ValueError("columns must be an object: the value of each column by its name")
    return json.dumps(columns, sort_keys=True)


# The annotations hold where JSON is read or written, in the render service; the constructors check nothing.
Prompt = Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
Seed = Annotated[int, Field(ge=0, lt=2**64, strict=True)]  # strict: neither true nor "1"
JsonImage = Annotated[
    Image.Image | None,
    BeforeValidator(decode_image),
    PlainSerializer(encode_image),
    WithJsonSchema({"anyOf": [{"type": "string", "contentEncoding": "base64"}, {"type": "null"}]}),
]
JsonObject = Annotated[
    str, BeforeValidator(json_text), PlainSerializer(json.loads), WithJsonSchema({"type": "object"})
]  # a text in memory, so that jobs can be compared
FailureKind = Literal["timeout", "out_of_memory", "bad_image", "reward", "other"]


@dataclass(frozen=True)
class RenderJob:
    """One image to render of `prompt` (the rewrite) from `seed`, and to score against `user_prompt`; with
    `for_evaluation` it is rendered with `eval_render_kwargs`. `columns` are those of the prompt's row that image
    rewards ask for, as JSON: see `Worker.columns`."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    prompt: Prompt
    user_prompt: Prompt
    seed: Seed
    for_evaluation: StrictBool = False
    columns: JsonObject = "{}"


@dataclass
class RenderResult:
    """The outcome of a job: a score of each image reward, or the error of the machine.

    Attributes:
        scores: by the reward's name; empty if the job failed.
        image: RGB, if it was asked for and the job did not fail.
        error: why the machine failed the job, else None.
        kind: which of five kinds of failure the error is, else None.
        tokens: the prompt's length for each tokenizer of the generator, uncut; empty if nothing was rendered.
    """

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    scores: dict[str, float] = field(default_factory=dict)
    image: JsonImage = None
    error: str | None = None
    kind: FailureKind | None = None
    tokens: dict[str, int] = field(default_factory=dict)

    @classmethod
    def failed(cls, error: Exception | str, kind: FailureKind = "other", **fields: dict) -> "RenderResult":
        """Return the result of a job that failed with this error."""
        text = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else error
        return cls(error=text, kind=kind, **fields)


class Worker(Protocol):
    """Renders and scores jobs: `LocalWorker` in this process, `HttpWorker` through a service."""

    images_drawn: int
    """Images rendered so far for this process."""
    token_limits: dict[str, int]
    """Tokens of a prompt that each tokenizer of the generator reads, e.g. {"clip": 77, "t5": 256}."""

    seconds: dict[str, float]
    """Seconds spent so far, by "render" and "score"; empty if only a service knows them."""
    is_remote: bool
    """Whether it works on other devices than this process."""
    columns: Sequence[str]
    """The columns of the prompts that its image rewards read beside `user_prompt`."""

    def submit(self, jobs: Sequence[RenderJob], return_images: bool = False) -> "Future[list[RenderResult]]":
        """Start to render and score the jobs, and return at once; the results come in the order of the jobs.

        A job that failed has an `error` and no scores: all or nothing.
        """


def columns_of(row: dict, names: Sequence[str]) -> str:
    """Return the row's columns of these names, for a job; one that the row lacks is left out.

    Raises:
        TypeError: a value is not JSON, such as an image.
    """
    return json_text({name: row[name] for name in names if row.get(name) is not None})


def paired_seeds(run_seed: int, salt: int | str, user_prompt: str, count: int) -> list[int]:
    """Return the seeds, each in 0..2**32-1, that every rewrite of `user_prompt` is rendered with.

    All rewrites of a group share them, so a difference in reward comes from the words and not from the noise.

    Args:
        run_seed: of the run.
        salt: the optimizer step in training, "validation" for held-out prompts.
        count: images per prompt.
    """
    digests = (hashlib.blake2b(f"{run_seed}|{salt}|{user_prompt}|{k}".encode(), digest_size=4) for k in range(count))
    return [int.from_bytes(digest.digest(), "big") for digest in digests]


def mean_scores(results: Sequence[RenderResult]) -> dict[str, float]:
    """Return the mean of each image reward over the images of one rewrite; empty if there are none or one failed.

    A part of a reward, such as `questions/color`, that not every image has is left out.
    """
    if not results or any(result.error for result in results):
        return {}
    names = [name for name in results[0].scores if all(name in result.scores for result in results)]
    return {name: sum(result.scores[name] for result in results) / len(results) for name in names}
