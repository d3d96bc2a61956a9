"""`ocr`: whether the image has the text that the user's prompt has in quotes. Higher is better, 0..1.

Of the letters and digits in quotes (a sign that reads "OPEN"), the share that is there: 1 minus the edit distance of
each word to the stretch of the recognised text that is nearest to it, over the words' length. Upper and lower case,
punctuation, line breaks and the order of words do not count, nor does other text in the image; a stretch counts for
one word only. By chance a wrong text gets up to about 0.3. A prompt without quoted text scores 1, and its image is
not read. Source: the visual text reward of Flow-GRPO, Liu et al. 2025 (arXiv 2505.05470), which compares the text as a
whole.

Model: PP-OCRv6 small (detection and recognition; 8M parameters, Apache-2.0), which RapidOCR (Apache-2.0) has in its
package: nothing is downloaded. About 0.5 GB of memory and, on two CPU cores, 0.5 s for an image of 512x512. It reads
Latin, Chinese and Japanese; text in another script, such as Hangul, scores about 0 unless `recognition_model` reads
it. Needs `pip install -e ".[rewards]"`.
"""

import re
import unicodedata
from pathlib import Path

from PIL import Image


# A straight quote opens only where no word or number goes before it (a dog's, 5" wide), and a single one closes only
# where no Latin letter follows (don't); Korean particles follow quotes directly.
LATIN = "A-Za-z0-9\u00c0-\u024f"
QUOTED = re.compile(
    rf"""(?<!\d)"([^"]+)"|(?<![{LATIN}])'(.+?)'(?![{LATIN}])|[“„]([^“”]+)[“”]|‘(.+?)’(?![{LATIN}])"""
    r"""|«([^»]+)»|「([^」]+)」|『([^』]+)』"""
)


def quoted_words(prompt: str) -> list[str]:
    """Return the words that `prompt` has in quotes, as `plain` writes them."""
    texts = ["".join(groups) for groups in QUOTED.findall(prompt)]
    return [word for text in texts for word in map(plain, text.split()) if word]


def plain(text: str) -> str:
    """Return the letters and digits of `text` in one case and width."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def nearest_stretch(word: str, text: str) -> tuple[int, int, int]:
    """Return the least edit distance of `word` to a stretch of `text`, and that stretch: (distance, start, end)."""
    row = [(0, start) for start in range(len(text) + 1)]  # for each end: (distance, start) of the letters so far
    for count, letter in enumerate(word, 1):
        above, row = row, [(count, 0)]
        for end, other in enumerate(text, 1):
            (replaced, start), (missing, start_missing), (added, start_added) = above[end - 1], above[end], row[-1]
            row.append(
                min((replaced + (letter != other), start), (missing + 1, start_missing), (added + 1, start_added))
            )
    return min((distance, start, end) for end, (distance, start) in enumerate(row))


def share_written(words: list[str], text: str) -> float:
    """Return the share, 0..1, of the letters of `words` (at least one) in `text`; a stretch of it counts once."""
    wrong = 0
    for word in sorted(words, key=len, reverse=True):
        distance, start, end = nearest_stretch(word, text)
        wrong += distance
        text = f"{text[:start]}\n{text[end:]}"
    return 1 - wrong / sum(map(len, words))


class OcrReward:
    """A reader of the images whose prompts have quoted text.

    Args:
        recognition_model: path to an ONNX file of RapidOCR that reads another script, such as
            `korean_PP-OCRv5_rec_mobile.onnx` (https://www.modelscope.cn/models/RapidAI/RapidOCR); default: the one in
            the package. ONNX Runtime runs the models on the CPU.

    Raises:
        ImportError: RapidOCR or ONNX Runtime is not installed.
        FileNotFoundError: there is no file `recognition_model`.
    """

    def __init__(self, recognition_model: str | None = None):
        try:
            import onnxruntime  # noqa: F401, RapidOCR loads it at the first image only
            from rapidocr import RapidOCR
        except ImportError as error:
            raise ImportError(
                "the reward 'ocr' needs RapidOCR and ONNX Runtime: pip install -e \".[rewards]\""
            ) from error
        settings = {"Global.log_level": "error"}  # else it warns of each image without text
        if recognition_model:
            if not Path(recognition_model).is_file():  # RapidOCR would notice at the first image only
                raise FileNotFoundError(f"reward_kwargs of 'ocr': there is no recognition_model {recognition_model}")
            settings["Rec.model_path"] = recognition_model
        self.engine = RapidOCR(params=settings)

    def __call__(self, images: list[Image.Image], user_prompts: list[str], prompts: list[str]) -> list[float]:
        """Return a score for each image and its user prompt; `prompts` (the rewrites) do not count."""
        quoted = map(quoted_words, user_prompts)
        return [
            share_written(words, self.read(image)) if words else 1.0
            for image, words in zip(images, quoted, strict=True)
        ]

    def read(self, image: Image.Image) -> str:
        """Return the letters and digits in the image, line after line."""
        result = self.engine(image.convert("RGB"))
        return plain("".join(result.txts or ()))
