"""Contact sheet of surprising transitions: a grid of cells, each with two frames and the numbers of a TD error.

A cell shows the newest frame of the observation and the newest one of the observation that was bootstrapped from.
Vectors are drawn as one bar for each number, scaled by the largest absolute value on the sheet.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from atari_dqn.render.drawing import BLUE, DIM, FAINT, GREEN, INK, PAPER, RAISED, RED, Picture, bar, blank, write

SIDE, GAP, MARGIN, HEADER, FIGURES = 168, 26, 12, 76, 72
"""Pixels: longest side of a frame, gap between two frames, margin of a cell, header of the sheet, and the numbers
below the frames."""


@dataclasses.dataclass(frozen=True)
class Surprise:
    """A transition as the saved networks see it now."""

    obs: npt.NDArray[np.generic]
    """Newest frame of the observation."""
    next_obs: npt.NDArray[np.generic]
    """Newest frame of the observation that is bootstrapped from, `steps` later."""
    steps: int
    """Environment steps of the n-step return."""
    action: int
    reward: float
    """The n-step return that is learned from."""
    terminal: bool
    """Whether the episode ended, or a life was lost: nothing is bootstrapped."""
    q: float
    target: float
    age: int
    """Environment steps since the transition."""

    @property
    def td_error(self) -> float:
        return self.target - self.q


def draw(surprises: Sequence[Surprise], names: Sequence[str], notes: Sequence[str], across: int) -> Image.Image:
    """Draw the sheet.

    Args:
        surprises: transitions, those of the first row first.
        names: of the actions.
        notes: a headline and a line of explanation.
        across: cells in a row.
    """
    pairs = _pictures(surprises)
    height, width, _ = pairs[0][0].shape
    cell_width, cell_height = max(2 * width + GAP, 360) + 2 * MARGIN, height + FIGURES + 2 * MARGIN
    down = -(-len(surprises) // across)
    sheet = blank(HEADER + down * cell_height, across * cell_width)
    write(sheet, notes[0], MARGIN, 12, 20, bold=True)
    write(sheet, notes[1], MARGIN, 44, 13, DIM)
    for number, (surprise, pair) in enumerate(zip(surprises, pairs, strict=True)):
        row, column = divmod(number, across)
        top, left = HEADER + row * cell_height, column * cell_width
        cell = sheet[top : top + cell_height, left : left + cell_width]
        cell[4:-4, 4:-4] = RAISED
        _draw_cell(cell, surprise, pair, names[surprise.action])
    return Image.fromarray(sheet)


def _draw_cell(cell: Picture, surprise: Surprise, pair: tuple[Picture, Picture], name: str) -> None:
    height, width, _ = pair[0].shape
    right = cell.shape[1] - MARGIN
    cell[MARGIN : MARGIN + height, MARGIN : MARGIN + width] = pair[0]
    cell[MARGIN : MARGIN + height, right - width : right] = pair[1]
    middle = cell.shape[1] // 2
    write(cell, "→", middle, MARGIN + height // 2 - 14, 18, DIM, align="middle")
    write(cell, str(surprise.steps), middle, MARGIN + height // 2 + 8, 11, DIM, align="middle")
    below = MARGIN + height + 6
    write(cell, name, MARGIN, below, 16, bold=True)
    error = surprise.td_error
    write(cell, f"TD {error:+.3f}", right, below, 16, GREEN if error > 0 else RED, bold=True, align="right")
    write(cell, f"Q {surprise.q:.3f}   target {surprise.target:.3f}", MARGIN, below + 26, 13, INK)
    write(
        cell, f"reward {surprise.reward:+.3g}" if surprise.reward else "reward 0", right, below + 26, 13, align="right"
    )
    write(cell, f"{surprise.age:,} env steps ago", MARGIN, below + 50, 12, DIM)
    if surprise.terminal:
        write(cell, "terminal", right, below + 50, 12, DIM, align="right")


def _pictures(surprises: Sequence[Surprise]) -> list[tuple[Picture, Picture]]:
    if surprises[0].obs.ndim > 1:
        return [(_image(each.obs), _image(each.next_obs)) for each in surprises]
    vectors = np.array([[each.obs, each.next_obs] for each in surprises], np.float64)
    largest = np.abs(vectors).max(axis=(0, 1))
    return [(_bars(before, largest), _bars(after, largest)) for before, after in vectors]


def _image(frame: npt.NDArray[Any]) -> Picture:
    """A frame, (H, W) or (H, W, up to 4), as RGB; enlarged by a whole factor, or shrunk, to `SIDE` at most."""
    channels = frame.reshape(*frame.shape[:2], -1)
    rgb = channels[..., :3] if channels.shape[2] >= 3 else np.repeat(channels[..., :1], 3, axis=2)
    rgb = np.ascontiguousarray(rgb, np.uint8)
    longest = max(rgb.shape[:2])
    factor = SIDE // longest or SIDE / longest
    how = cv2.INTER_NEAREST if factor >= 1 else cv2.INTER_AREA
    return np.asarray(cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=how), np.uint8)


def _bars(vector: npt.NDArray[np.float64], largest: npt.NDArray[np.float64]) -> Picture:
    picture = blank(SIDE, SIDE, PAPER)
    pitch = max(1, min(32, SIDE // len(vector)))
    top = (SIDE - pitch * min(len(vector), SIDE)) // 2
    middle = 58
    for number, most in zip(vector, largest, strict=True):
        bar(picture, middle, top + pitch // 5, number / most * 50 if most else 0, max(1, pitch * 3 // 5), BLUE)
        if pitch >= 12:
            write(picture, f"{number:.3f}", SIDE - 6, top + pitch // 2 - 8, 12, INK, align="right")
        top += pitch
    picture[:, middle] = FAINT
    return picture
