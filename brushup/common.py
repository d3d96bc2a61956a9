"""Small helpers that several packages use."""

import ctypes
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils import parse_flag_from_env
from PIL import Image
from transformers.integrations import deepspeed as hf_deepspeed


MAX_PROMPT_CHARS = 8_000
USE_CPU = "BRUSHUP_USE_CPU"  # the environment variable by which a run tells its service, too
THUMBNAIL_PIXELS = 256  # the longer side of an image that is kept to look at


def cpu_only() -> bool:
    """Return whether GPUs are to be left alone: `use_cpu: true` of Accelerate's file, or of the run."""
    return parse_flag_from_env("ACCELERATE_USE_CPU") or parse_flag_from_env(USE_CPU)


def default_device() -> str:
    """Return "cuda" if there is a GPU, else "mps" on a Mac, else "cpu"; "cpu" if it is `cpu_only`."""
    if cpu_only():
        return "cpu"
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def percent(share: float | None) -> str:
    """Return the share, 0..1, in percent; a dash for None."""
    return "-" if share is None else f"{share:.1%}"


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table, its columns padded to equal width; the first row is the header."""
    cells = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    )


def thumbnail(image: Image.Image) -> Image.Image:
    """Return an RGB copy of the image whose longer side has at most `THUMBNAIL_PIXELS` pixels."""
    image = image.convert("RGB")
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    return image


@contextmanager
def whole_on_each_rank() -> Iterator[None]:
    """Load models whole on each rank inside this context; under ZeRO-3 transformers would shard any model."""
    zero3 = hf_deepspeed._hf_deepspeed_config_weak_ref
    hf_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        hf_deepspeed._hf_deepspeed_config_weak_ref = zero3


def end_with_parent(signal_number: int = signal.SIGTERM) -> None:
    """Ask Linux to send this process the signal when its parent ends, however that ends; elsewhere do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal_number)  # PR_SET_PDEATHSIG
