"""`compression`: the share of its bytes that an image saves as a JPEG file. Higher is better, 0..1. No model.

A control: it needs no prompt and any image can be pushed along it, so it shows whether training works at all (plain
surfaces raise it, detail and noise lower it). Photographs have about 0.9. With `prefer: large` it is the share that is
left, and detail raises it. Train on it alone, or watch it with weight 0. A malformed answer has 0, so this is never
below 0: a policy would learn to write nothing that can be rendered.

Source: the (in)compressibility tasks of DDPO, Black et al. 2023 (arXiv 2305.13301), there in kB of images of one
size; a share compares images of different sizes. The header of the file counts (600 bytes: a fifth of an image of
32x32, next to nothing of one of 512x512). Takes about 10 ms for an image of 1024x1024, on the CPU.
"""

from io import BytesIO

from PIL import Image


class CompressionReward:
    """A score of images by the size of their JPEG files, chroma subsampled (Pillow's default).

    Args:
        prefer: "small" or "large" files.
        quality: of the JPEG, 1 to 95.

    Raises:
        ValueError: another `prefer`, or `quality` out of range.
    """

    def __init__(self, prefer: str = "small", quality: int = 95):
        if prefer not in ("small", "large"):
            raise ValueError(f"reward_kwargs of 'compression': prefer is {prefer!r}; it must be 'small' or 'large'")
        if not 1 <= quality <= 95:
            raise ValueError(f"reward_kwargs of 'compression': quality is {quality}; it must be 1 to 95")
        self.prefer = prefer
        self.quality = quality

    def __call__(self, images: list[Image.Image], user_prompts: list[str], prompts: list[str]) -> list[float]:
        """Return a score for each image; the prompts do not count."""
        shares = map(self._share_left, images)
        return [share if self.prefer == "large" else 1 - share for share in shares]

    def _share_left(self, image: Image.Image) -> float:
        """Return the size of the JPEG file over that of the raw pixels, 0..1."""
        file = BytesIO()
        image.convert("RGB").save(file, "JPEG", quality=self.quality)
        return min(1.0, file.tell() / (3 * image.width * image.height))
