"""`image_quality`: whether the image is sharp, rich in contrast and well exposed. Higher is better, 0..1. No model.

The geometric mean of three parts, each 0..1: geometric, so that no part makes up for another. A blank image has no
contrast and scores 0 however well it is lit.

- *sharpness*: 1 minus the blur effect of Crété-Roffet et al. 2007 ("The blur effect: perception and estimation with a
  new no-reference perceptual blur metric"): the share of the luminance gradients that a blur takes away; small, if the
  image was blurred already. Unlike the variance of the Laplacian it does not grow with contrast, which has its own
  part. Sharp photographs have about 0.7.
- *contrast*: the range from the 1st to the 99th percentile, of the colour channel where it is widest (red on green has
  contrast, but hardly any in luminance).
- *exposure*: 1 if the mean luminance is 0.2 to 0.8, falling linearly to 0 at black and white. The plateau is wide
  because night scenes and white backgrounds are often what the user asked for.

It measures the signal, not beauty, and takes noise for sharpness: use it as a monitor (weight 0) or with a small
weight. Takes about 0.2 s for an image of 1024x1024, on the CPU.
"""

import math

import numpy as np
from PIL import Image
from scipy import ndimage


BLUR_WIDTH = 11  # pixels, the default of scikit-image's `blur_effect`


def sharpness(luminance: np.ndarray) -> float:
    """Return 1 minus the blur effect, 0..1, of the more blurred direction. `luminance`: (height, width), 0..1."""
    shares = []
    for axis in (0, 1):
        blurred = ndimage.uniform_filter1d(luminance, BLUR_WIDTH, axis=axis)
        inner = (slice(2, -1), slice(2, -1))  # without the border, where filters invent values
        before, after = (np.abs(ndimage.sobel(values, axis=axis))[inner] for values in (luminance, blurred))
        lost = np.maximum(before - after, 0).sum()
        shares.append(lost / before.sum() if before.any() else 0.0)
    return float(min(shares))


def contrast(pixels: np.ndarray) -> float:
    """Return the widest 1st-to-99th percentile range of a channel, 0..1. `pixels`: (height, width, 3), 0..1."""
    low, high = np.percentile(pixels, (1, 99), axis=(0, 1))
    return float((high - low).max())


def exposure(luminance: np.ndarray) -> float:
    """Return 1 for a mean luminance of 0.2 to 0.8, falling to 0 at 0 and 1."""
    mean = float(luminance.mean())
    return min(1.0, mean / 0.2, (1 - mean) / 0.2)


def image_quality(images: list[Image.Image], user_prompts: list[str], prompts: list[str]) -> list[float]:
    """Return a score for each image; the prompts do not count."""
    scores = []
    for image in images:
        luminance = np.asarray(image.convert("L")) / 255
        parts = sharpness(luminance), contrast(np.asarray(image.convert("RGB")) / 255), exposure(luminance)
        scores.append(math.prod(parts) ** (1 / 3))
    return scores
