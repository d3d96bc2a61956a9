"""A sheet of images side by side, each with a line of text."""

import functools
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


CELL = 160  # pixels, the width and height of an image on the sheet
GAP = 12
TITLE = 26  # pixels, the height of a title
TEXT_LINES = 3

# Pillow's own font has no Korean; one of these is used if it is installed (Debian: fonts-nanum or fonts-noto-cjk).
KOREAN_FONTS = ("NotoSansCJK-Regular.ttc", "NanumGothic.ttf", "AppleSDGothicNeo.ttc", "malgun.ttf")


@functools.cache
def _korean_font(size: int) -> ImageFont.FreeTypeFont | None:
    for name in KOREAN_FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return None


def _is_western(text: str) -> bool:
    return all(letter < "\u2e80" for letter in text)


def can_write(text: str) -> bool:
    """Return whether this machine has a font for the letters of the text; without one they become boxes."""
    return _is_western(text) or _korean_font(12) is not None


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    return (None if _is_western(text) else _korean_font(size)) or ImageFont.load_default(size)


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


def labelled_grid(lines: Sequence[tuple[str, Sequence[tuple[Image.Image, str]]]]) -> Image.Image:
    """Return a sheet with a line of images for each (title, [(image, caption), ...])."""
    width = GAP + max(len(cells) for _, cells in lines) * (CELL + GAP)
    height_of_line = TITLE + CELL + 4 + TEXT_LINES * 16 + GAP
    sheet = Image.new("RGB", (width, GAP + len(lines) * height_of_line), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (title, cells) in enumerate(lines):
        top = GAP + number * height_of_line
        font = _font(title, 15)
        draw.text((GAP, top), _wrap(title, font, width - 2 * GAP, 1), fill="#111111", font=font)
        top += TITLE
        for index, (image, caption) in enumerate(cells):
            left = GAP + index * (CELL + GAP)
            resampling = Image.Resampling.NEAREST if image.width < CELL else Image.Resampling.LANCZOS
            sheet.paste(image.convert("RGB").resize((CELL, CELL), resampling), (left, top))
            draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline="#cccccc")
            font = _font(caption, 12)
            text = _wrap(caption, font, CELL, TEXT_LINES)
            draw.multiline_text((left, top + CELL + 4), text, fill="#333333", font=font, spacing=3)
    return sheet
