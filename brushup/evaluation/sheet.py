"""A sheet of images side by side, each with a line of text."""

import functools
import logging
import shutil
import subprocess
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont


logger = logging.getLogger(__name__)

CELL = 192  # pixels, the width and height of an image on the sheet
GAP = 12
TITLE = 26  # pixels, the height of a title
TEXT_LINES = 3

# Without fontconfig, as on macOS and Windows: Pillow looks for these in the folders of the system's fonts.
FONT_FILES = ("NotoSansCJK-Regular.ttc", "NanumGothic.ttf", "AppleSDGothicNeo.ttc", "malgun.ttf", "Arial.ttf")


class Cell(NamedTuple):
    """An image on a sheet, the text below it, and whether it is right; None: nobody knows."""

    image: Image.Image
    caption: str
    is_right: bool | None = None


def can_write(text: str) -> bool:
    """Return whether this machine has a font with all letters of the text; without one they become boxes."""
    return _find_font(text, 12) is not None


@functools.lru_cache
def _find_font(text: str, size: int) -> ImageFont.FreeTypeFont | None:
    """Return Pillow's own font, or one of this machine, that has all letters of the text; None if there is none."""
    if _has_letters(ImageFont.load_default(size), text):
        return ImageFont.load_default(size)
    letters = " ".join(sorted({f"{ord(letter):x}" for letter in text if not letter.isspace()}))
    matched = []
    if shutil.which("fc-match"):
        command = ["fc-match", "--format=%{file}", f"sans:charset={letters}"]
        matched = [subprocess.run(command, capture_output=True, text=True, timeout=60).stdout]
    for file in (*filter(None, matched), *FONT_FILES):
        try:
            font = ImageFont.truetype(file, size)
        except OSError:  # not there, or of a format that Pillow can't draw
            continue
        if _has_letters(font, text):
            return font
    return None


def _has_letters(font: ImageFont.FreeTypeFont, text: str) -> bool:
    box = bytes(font.getmask("\U0010ffff"))  # no letter: fonts draw what they lack as a box
    seen = [letter for letter in set(text) if letter.isprintable() and not letter.isspace()]
    return all(bytes(font.getmask(letter)) != box for letter in seen)


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    font = _find_font(text, size)
    if font is None:
        _warn_of_boxes()
    return font or ImageFont.load_default(size)


@functools.cache  # once is enough
def _warn_of_boxes() -> None:
    logger.warning(
        "no font of this machine has all letters of the prompts: sheets of images show boxes in their place; Debian's "
        "fonts-noto-cjk has those of Korean, Chinese and Japanese"
    )


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, most: int) -> str:
    """Return the text broken into at most `most` lines of `width` pixels; the rest is cut off with an ellipsis."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= width or not line:
            line = longer
        elif len(lines) == most - 1:
            while line and font.getlength(line + "…") > width:
                line = line[:-1]
            return "\n".join([*lines, line + "…"])
        else:
            lines.append(line)
            line = word
    return "\n".join([*lines, line])


def labelled_grid(lines: Sequence[tuple[str, Sequence[Cell | tuple[Image.Image, str]]]]) -> Image.Image:
    """Return a sheet with a line of images for each (title, cells); right images have a tick, wrong ones a cross."""
    width = GAP + max(len(cells) for _, cells in lines) * (CELL + GAP)
    height_of_line = TITLE + CELL + 4 + TEXT_LINES * 16 + GAP
    sheet = Image.new("RGB", (width, GAP + len(lines) * height_of_line), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, cells) in enumerate(lines):
        top = GAP + number * height_of_line
        font = _font(title, 15)
        draw.text((GAP, top), _wrap(title, font, width - 2 * GAP, 1), fill="#111111", font=font)
        top += TITLE
        for index, (image, caption, is_right) in enumerate(Cell(*cell) for cell in cells):
            left = GAP + index * (CELL + GAP)
            resampling = Image.Resampling.NEAREST if image.width < CELL else Image.Resampling.LANCZOS
            sheet.paste(image.convert("RGB").resize((CELL, CELL), resampling), (left, top))
            draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline="#cccccc")
            if is_right is not None:
                _mark(draw, left + CELL - 16, top + CELL - 16, is_right)
            font = _font(caption, 12)
            text = _wrap(caption, font, CELL, TEXT_LINES)
            draw.multiline_text((left, top + CELL + 4), text, fill="#333333", font=font, spacing=3)
    return sheet


def _mark(draw: ImageDraw.ImageDraw, x: float, y: float, is_right: bool) -> None:
    """Draw a tick in a green disc around (x, y), or a cross in a red one."""
    draw.ellipse((x - 12, y - 12, x + 12, y + 12), fill="#2e9e4f" if is_right else "#d03030", outline="white", width=2)
    cross = [(-4, -4, 4, 4), (-4, 4, 4, -4)]
    for x1, y1, x2, y2 in [(-5, 0, -1, 4), (-1, 4, 6, -4)] if is_right else cross:
        draw.line((x + x1, y + y1, x + x2, y + y2), fill="white", width=3)
