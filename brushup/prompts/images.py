"""Images beside prompts, as the policy gets them."""

import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import datasets
import numpy as np
from datasets import Dataset
from PIL import Image, ImageOps


def load_image(path: str | Path | BinaryIO) -> Image.Image:
    """Load the image as people see it: turned as its EXIF data say, without transparency, 8 bits a channel.

    Returns:
        The image in RGB; transparent parts are white, and 16-bit grey becomes 8-bit.

    Raises:
        ValueError: there is no such file, or it is no image that can be read; the message names it.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode == "F":
                raise ValueError("its pixels are floating-point numbers: save it with 8 or 16 bits")
            if image.mode.startswith("I"):  # grey, 0..65535: Pillow's `convert` would cut it off at 255
                image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))
            if image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            return image.convert("RGB")
    # Pillow raises SyntaxError for a broken PNG.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        name = path if isinstance(path, str | Path) else "the image"
        raise ValueError(f"{name}: no image that can be read ({error})") from error


def load_images(rows: Dataset, folder: Path, all_or_none: bool) -> tuple[Dataset, dict[int, str]]:
    """Return the rows with the column `image` as images, and the fault of each row whose image can't be used.

    Every image is decoded once. One that `load_image` changes (turned, transparent, 16 bits) is kept as changed.

    Args:
        rows: with paths, or with images of `datasets`.
        folder: paths are relative to it.
        all_or_none: a row without an image is a fault if most rows have one.
    """
    if isinstance(rows.features["image"], datasets.Image):
        rows = rows.cast_column("image", datasets.Image(decode=False))
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(partial(_decoded, folder=folder), rows["image"]))
    faults = {index: item for index, item in enumerate(found) if isinstance(item, str)}
    missing = [index for index, item in enumerate(found) if item is None]
    if all_or_none and 2 * len(missing) < len(found):
        faults |= dict.fromkeys(missing, "`image` is missing; for training all rows have one, or none has")
    elif all_or_none and len(missing) < len(found):
        present = {*range(len(found))} - {*missing}
        faults = dict.fromkeys(
            present, "`image` is there, but most rows have none; for training all have one, or none"
        )
    items = [item if isinstance(item, dict) else None for item in found]
    rows = rows.remove_columns("image")
    return rows.add_column("image", items, feature=datasets.Image()), faults


def _decoded(item: str | dict | None, folder: Path) -> dict | str | None:
    """Return an image as `datasets` stores it, its path or its bytes; a text says why it can't be read."""
    if item is None:
        return None
    data = item.get("bytes") if isinstance(item, dict) else None
    path = item.get("path") if isinstance(item, dict) else item
    if not data and not (isinstance(path, str) and (folder / path).is_file()):
        return f"there is no image {folder / str(path)}"
    try:
        image = load_image(io.BytesIO(data) if data else folder / path)
        with Image.open(io.BytesIO(data) if data else folder / path) as file:
            is_as_stored = file.mode == "RGB" and not file.getexif()
    except ValueError as error:
        return str(error)
    if is_as_stored:
        return {"bytes": data, "path": None if data else str(folder / path)}
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"bytes": file.getvalue(), "path": None}
