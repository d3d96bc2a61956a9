"""`compression`: how small the picture is as a JPEG file: minus its bits per pixel. Higher is better. No model.

A control: it needs no prompt and any picture can be pushed along it, so it shows whether training works at all (plain
surfaces raise it, detail and noise lower it). It is below 0, about -2 to -3 for photographs. With `prefer: large` the
sign is turned, and detail raises it. Train on it alone, or watch it with weight 0.

Source: the (in)compressibility tasks of DDPO, Black et al. 2023 (arXiv 2305.13301), there in kB of pictures of one
size; bits per pixel compare pictures of different sizes. The header of the file counts (600 bytes: 5 bits per pixel at
32x32, 0.02 at 512x512). Takes about 10 ms a picture of 1024x1024, on the CPU.
"""

from io import BytesIO

from PIL import Image


class CompressionReward:
    """Scores pictures by the size of their JPEG files, chroma subsampled (Pillow's default).

    Args:
        prefer: "small" (the score is minus the bits per pixel) or "large".
        quality: of the JPEG, 1 to 95.
        device: not used.

    Raises:
        ValueError: another `prefer`, or `quality` out of range.
    """

    def __init__(self, prefer: str = "small", quality: int = 95, device: str | None = None):
        if prefer not in ("small", "large"):
            raise ValueError(f"reward_kwargs of 'compression': prefer is {prefer!r}; it must be 'small' or 'large'")
        if not 1 <= quality <= 95:
            raise ValueError(f"reward_kwargs of 'compression': quality is {quality}; it must be 1 to 95")
        self.sign = 1 if prefer == "large" else -1
        self.quality = quality

    def __call__(self, images: list[Image.Image], user_prompts: list[str], prompts: list[str]) -> list[float]:
        """A score for each picture; the prompts do not count."""
        return [self.sign * self._bits_per_pixel(image) for image in images]

    def _bits_per_pixel(self, image: Image.Image) -> float:
        file = BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=self.quality)
        return 8 * len(file.getvalue()) / (image.width * image.height)
