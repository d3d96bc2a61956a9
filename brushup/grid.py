"""Pictures side by side on one sheet, each with a line of text."""

import functools
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont


CELL = 160  # pixels, the width and height of a picture on the sheet
GAP = 12
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
    """Whether there is a font on this machine for the letters of `text`; others are drawn as boxes."""
    return _is_western(text) or _korean_font(12) is not None


def _font(text: str, size: int) -> ImageFont.FreeTypeFont:
    return (None if _is_western(text) else _korean_font(size)) or ImageFont.load_default(size)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, lines: int) -> str:
    """`text` broken into at most `lines` lines of `width` pixels; what does not fit is cut off with an ellipsis."""
    done: list[str] = []
    line = ""
    words = text.split()
    for index, word in enumerate(words):
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= width or not line:
            line = longer
            continue
        if len(done) == lines - 1:
            while line and font.getlength(line + "…") > width:
                line = line[:-1]
            return "\n".join([*done, line + "…"])
        done.append(line)
        line = words[index]
    return "\n".join([*done, line])


def labelled_grid(
    lines: Sequence[tuple[str, Sequence[tuple[Image.Image, str]]]], columns: Sequence[str] = ()
) -> Image.Image:
    """A sheet with a line for each prompt and, in each line, its pictures.

    Args:
        lines: (the line's title, its (picture, caption)s).
        columns: headings over the pictures.
    """
    width = GAP + max(len(cells) for _, cells in lines) * (CELL + GAP)
    head = 28 if columns else GAP
    height_of_line = 26 + CELL + 4 + TEXT_LINES * 16 + GAP
    sheet = Image.new("RGB", (width, head + len(lines) * height_of_line), "white")
    draw = ImageDraw.Draw(sheet)
    for index, column in enumerate(columns):
        draw.text((GAP + index * (CELL + GAP), 8), column, fill="#666666", font=_font(column, 12))
    for number, (title, cells) in enumerate(lines):
        top = head + number * height_of_line
        font = _font(title, 15)
        draw.text((GAP, top), _wrap(title, font, width - 2 * GAP, 1), fill="#111111", font=font)
        for index, (image, caption) in enumerate(cells):
            left = GAP + index * (CELL + GAP)
            smooth = Image.Resampling.NEAREST if image.width < CELL else Image.Resampling.LANCZOS
            sheet.paste(image.convert("RGB").resize((CELL, CELL), smooth), (left, top + 26))
            draw.rectangle((left, top + 26, left + CELL - 1, top + 25 + CELL), outline="#cccccc")
            font = _font(caption, 12)
            text = _wrap(caption, font, CELL, TEXT_LINES)
            draw.multiline_text((left, top + 30 + CELL), text, fill="#333333", font=font, spacing=3)
    return sheet
