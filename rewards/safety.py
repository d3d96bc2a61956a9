"""`safety`: 1 for an image without nudity, 0 for one with it. Higher is better.

Model: NudeNet 3.4's detector 320n (a YOLOv8n of 3M parameters, in the package: nothing is downloaded; about 150 MB of
memory; 50 ms an image, on the CPU). It sees nudity only, not violence or the like, and overlooks some of it (4 of 10
images in a user's count of 10,000, NudeNet's issue 159): it makes such images rarer, but is no filter.

Licence: NudeNet and its model are under the AGPL-3.0 (the package's metadata on PyPI say MIT; the licence file in it
and its author say AGPL). Who passes it on, or lets others use it over a network, owes them the sources under that
licence. So Brushup neither contains it nor depends on it, and it is a separate extra: if you agree to that,
`pip install -e ".[safety]"`. Source: https://github.com/notAI-tech/NudeNet (there is no paper).
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image


UNSAFE_CLASSES = (
    "FEMALE_BREAST_EXPOSED",
    "FEMALE_GENITALIA_EXPOSED",
    "MALE_GENITALIA_EXPOSED",
    "BUTTOCKS_EXPOSED",
    "ANUS_EXPOSED",
)
CLASSES = UNSAFE_CLASSES + (
    "MALE_BREAST_EXPOSED",
    "BELLY_EXPOSED",
    "ARMPITS_EXPOSED",
    "FEET_EXPOSED",
    "FEMALE_BREAST_COVERED",
    "FEMALE_GENITALIA_COVERED",
    "BUTTOCKS_COVERED",
    "ANUS_COVERED",
    "BELLY_COVERED",
    "ARMPITS_COVERED",
    "FEET_COVERED",
    "FACE_FEMALE",
    "FACE_MALE",
)


class SafetyReward:
    """A score of images by what NudeNet detects in them.

    Args:
        classes: the detections that make an image unsafe, of `CLASSES`.
        threshold: the confidence from which a detection counts, 0.25 to 1. NudeNet reports none below 0.25; the
            default counts all, since missing one is worse here than a false alarm.
        batch_size: images scored at once, on the CPU by ONNX Runtime.

    Raises:
        ImportError: NudeNet is not installed.
        ValueError: a class that NudeNet does not know, no class, or `threshold` out of range.
    """

    def __init__(
        self,
        classes: Sequence[str] = UNSAFE_CLASSES,
        threshold: float = 0.25,
        batch_size: int = 16,
    ):
        unknown = [name for name in classes if name not in CLASSES]
        if unknown or not classes:
            raise ValueError(
                f"reward_kwargs of 'safety': classes is {list(classes)}; it must be some of {', '.join(CLASSES)}"
            )
        if not 0.25 <= threshold <= 1:
            raise ValueError(f"reward_kwargs of 'safety': threshold is {threshold}; it must be 0.25 to 1")
        try:
            from nudenet import NudeDetector
        except ImportError as error:
            raise ImportError(
                "the reward 'safety' needs NudeNet, which is under the AGPL-3.0: pip install -e \".[safety]\""
            ) from error
        self.classes = frozenset(classes)
        self.threshold = threshold
        self.batch_size = batch_size
        self.detector = NudeDetector()

    def __call__(self, images: list[Image.Image], user_prompts: list[str], prompts: list[str]) -> list[float]:
        """Return 1.0 or 0.0 for each image; the prompts do not count."""
        # `detect_batch` reverses the channels twice, so it needs RGB; the BGR of OpenCV would stay BGR.
        pixels = [np.asarray(image.convert("RGB")) for image in images]
        found = self.detector.detect_batch(pixels, batch_size=self.batch_size)
        return [0.0 if any(map(self._is_unsafe, detections)) else 1.0 for detections in found]

    def _is_unsafe(self, detection: dict) -> bool:
        """Return whether the detection counts: an unsafe class with enough confidence."""
        return detection["class"] in self.classes and detection["score"] >= self.threshold
