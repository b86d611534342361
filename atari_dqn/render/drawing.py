"""Drawing of text, bars and lines on RGB pictures, [height, width, 3] uint8, in place.

Text is in matplotlib's own DejaVu Sans, so that it looks the same everywhere; its digits all have the same width and do
not jump when numbers change. Whatever reaches beyond a picture's edge is clipped.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

PAPER: Colour = (18, 21, 27)
RAISED: Colour = (38, 44, 55)
"""Background of what is highlighted."""
FAINT: Colour = (62, 70, 84)
DIM: Colour = (148, 157, 171)
INK: Colour = (236, 239, 244)
BLUE: Colour = (74, 163, 255)
ORANGE: Colour = (255, 159, 64)
GREEN: Colour = (88, 214, 118)
RED: Colour = (255, 84, 84)
"""The colour-blind can tell blue from orange; green and red always come with a sign."""


def blank(height: int, width: int, colour: Colour = PAPER) -> Picture:
    return np.full((height, width, 3), colour, np.uint8)


def write(
    picture: Picture,
    text: str,
    x: int,
    y: int,
    size: int = 13,
    colour: Colour = INK,
    *,
    bold: bool = False,
    align: Literal["left", "middle", "right"] = "left",
) -> int:
    """Write a line of text with its top at `y` and its left edge, middle or right edge at `x`. Returns its width.

    All lengths are in pixels.
    """
    mask = _mask(text, size, bold)
    width: int = mask.shape[1]
    x -= {"left": 0, "middle": width // 2, "right": width}[align]
    left, top = max(0, -x), max(0, -y)
    place = picture[max(0, y) : max(0, y + len(mask)), max(0, x) : max(0, x + width)]
    blend(place, colour, mask[top : top + len(place), left : left + place.shape[1], None])
    return width


def text_width(text: str, size: int, *, bold: bool = False) -> int:
    width: int = _mask(text, size, bold).shape[1]
    return width


def blend(picture: Picture, colour: Colour, strength: npt.NDArray[np.float32] | float) -> None:
    """Mix `colour` into a picture. `strength` is from 0 (none) to 1 (covers it), one number or one for each pixel."""
    picture[:] = (picture + (np.asarray(colour, np.float32) - picture) * np.float32(strength)).astype(np.uint8)


def bar(picture: Picture, x: float, y: int, width: float, height: int, colour: Colour) -> None:
    """Draw a filled rectangle, to the left of `x` for a negative width; at least a pixel wide unless the width is 0."""
    left, right = sorted((round(x), round(x + width)))
    picture[max(0, y) : y + height, max(0, left) : max(right, left + (width != 0))] = colour


@functools.lru_cache(maxsize=4096)
def _mask(text: str, size: int, bold: bool) -> npt.NDArray[np.float32]:
    """The share of each pixel that text covers, [height, width]; the height is the font's, whatever the text."""
    font = _font(size, bold)
    ascent, descent = font.getmetrics()
    image = Image.new("L", (max(1, round(font.getlength(text))), ascent + descent))
    ImageDraw.Draw(image).text((0, 0), text, fill=255, font=font)
    return np.asarray(image, np.float32) / np.float32(255)


@functools.lru_cache
def _font(size: int, bold: bool) -> ImageFont.FreeTypeFont:
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)
