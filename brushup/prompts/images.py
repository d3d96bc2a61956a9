"""Images beside prompts, as the policy gets them."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps


def load_image(path: str | Path) -> Image.Image:
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
        raise ValueError(f"{path}: no image that can be read ({error})") from error
