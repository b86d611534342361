"""Overlay of a film: a panel beside the game that shows what the network thinks.

It shows the score, the newest reward and the lives, a bar for each action, and the value over the last seconds. A bar
is the difference between the action's Q and the mean of all, which is the advantage in a dueling network; the value is
the largest Q.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import cv2
import matplotlib
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from atari_dqn.cli.format import q_value
from atari_dqn.envs.film import FilmedEnv
from atari_dqn.envs.protocol import Protocol
from atari_dqn.evaluation.player import Decision
from atari_dqn.policy.trained import TrainedNetwork
from atari_dqn.render.video import Picture, enlarge

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

PANEL_WIDTH, MARGIN, ROWS_AT, LEAST_PITCH, GRAPH_HEIGHT = 400, 16, 132, 16, 160
"""Pixels: width and margin of the panel, its top to the first action, least height of an action and of the graph."""
FLASH_SECONDS = 0.6
"""How long a reward or a lost life stays highlighted."""
WINDOW_SECONDS = 12.0
"""Time span of the value's graph."""
RUN_OUT = 0.99
"""Factor by which the scale of the bars shrinks at each decision once they have become shorter."""


@dataclasses.dataclass
class _Moment:
    """A decision's value, and its outcome."""

    value: float
    reward: float = 0.0
    life_lost: bool = False


class Overlay:
    """Draws the panel beside each picture of one game. Call `decide` before the pictures that the decision leads to."""

    @classmethod
    def of(cls, policy: TrainedNetwork, protocol: Protocol, env: FilmedEnv) -> Overlay:
        """For a game of `policy` in `env`."""
        conditions = f" · {protocol.name}" if env.spec.is_atari else ""
        title = f"{env.spec.env_id}{conditions} · {policy.env_step:,} env steps"
        return cls(title, env.action_names, env.fps, env.pictures_per_step)

    def __init__(self, title: str, names: Sequence[str], fps: int, pictures_per_step: int) -> None:
        self._title, self._names = title, names
        least = ROWS_AT + LEAST_PITCH * min(18, len(names)) + GRAPH_HEIGHT
        self._least_height = least + least % 2
        """Least height of a film in pixels; a lower picture is centred."""
        self._flash = FLASH_SECONDS * fps  # in pictures
        window = round(WINDOW_SECONDS * fps / pictures_per_step)
        self._moments: collections.deque[_Moment] = collections.deque(maxlen=window)
        self._decision = Decision(np.zeros(len(names), np.float32), -1, False)
        self._scale = 0.0
        self._score, self._reward = 0.0, 0.0
        self._lives: int | None = None
        self._since_reward = self._since_loss = self._flash
        self._panel: Picture | None = None
        """The panel without the figures that change with every picture."""

    def decide(self, decision: Decision) -> None:
        """Show `decision` from the next picture on."""
        self._decision = decision
        self._moments.append(_Moment(float(decision.q.max())))
        self._scale = max(self._scale * RUN_OUT, float(np.abs(decision.q - decision.q.mean()).max()))
        self._panel = None

    def beside(self, picture: Picture, score: float, lives: int | None) -> Picture:
        """The next picture, [height, width, 3] uint8, enlarged and with its panel; both sides are even."""
        self._take(score, lives)
        large = enlarge(picture)
        height, width, _ = large.shape
        whole = blank(max(height, self._least_height), width + PANEL_WIDTH)
        top = (len(whole) - height) // 2
        whole[top : top + height, :width] = large
        panel = whole[:, width:]
        if self._panel is None:
            self._panel = self._draw(len(whole))
        panel[:] = self._panel
        self._draw_figures(panel)
        return whole

    def _take(self, score: float, lives: int | None) -> None:
        self._since_reward, self._since_loss = self._since_reward + 1, self._since_loss + 1
        reward = score - self._score
        lost = lives is not None and self._lives is not None and lives < self._lives
        if reward:
            self._reward, self._since_reward = reward, 0
        if lost:
            self._since_loss = 0
        if self._moments:
            self._moments[-1].reward += reward
            self._moments[-1].life_lost |= lost
        self._score, self._lives = score, lives

    def _draw_figures(self, panel: Picture) -> None:
        """Draw score, newest reward and lives."""
        columns = [("score", f"{self._score:,.6g}", INK), ("reward", "0", FAINT)]
        if self._since_reward < self._flash:
            columns[1] = ("reward", f"{self._reward:+.4g}", GREEN if self._reward > 0 else RED)
        if self._lives is not None:
            columns.append(("lives", str(self._lives), RED if self._since_loss < self._flash else INK))
        step = (PANEL_WIDTH - 2 * MARGIN) // 3
        for column, (name, figure, colour) in enumerate(columns):
            left = MARGIN + column * step
            write(panel, name, left, 40, 11, DIM)
            write(panel, figure, left, 54, 28 if len(figure) < 7 else 20, colour, bold=True)

    def _draw(self, height: int) -> Picture:
        panel = blank(height, PANEL_WIDTH)
        write(panel, self._title, MARGIN, 14, 12, DIM)
        write(panel, "Q", MARGIN, ROWS_AT - 24, 13, bold=True)
        note = f"bars: Q − mean, half width {self._scale:.2g}"
        write(panel, note, PANEL_WIDTH - MARGIN, ROWS_AT - 22, 11, DIM, align="right")
        pitch = min(34, max(3, (height - ROWS_AT - GRAPH_HEIGHT) // len(self._names)))
        self._draw_actions(panel, pitch)
        below = ROWS_AT + pitch * len(self._names) + 6
        left = MARGIN
        for colour, meaning in ((BLUE, "greedy choice"), (ORANGE, "random choice"), (FAINT, "not chosen")):
            bar(panel, left, below + 3, 9, 9, colour)
            left += 14 + write(panel, meaning, left + 14, below, 11, DIM) + 16
        self._draw_value(panel, below + 30)
        return panel

    def _draw_actions(self, panel: Picture, pitch: int) -> None:
        size = max(9, min(15, pitch - 6))
        bars_from = MARGIN + 12 + max(_mask(name, size, True).shape[1] for name in self._names) + 10
        bars_to = PANEL_WIDTH - MARGIN - 62
        middle = (bars_from + bars_to) // 2
        decision = self._decision
        for action, name in enumerate(self._names):
            top = ROWS_AT + action * pitch
            text_at = top + (pitch - round(1.17 * size)) // 2
            chosen, best = action == decision.action, action == int(decision.q.argmax())
            colour = FAINT if not chosen else ORANGE if decision.random else BLUE
            if chosen:
                panel[top : top + pitch, MARGIN // 2 : -MARGIN // 2] = RAISED
                bar(panel, MARGIN // 2, top, 4, pitch, colour)
            reach = float(decision.q[action] - decision.q.mean()) / self._scale if self._scale else 0.0
            thick = max(1, pitch * 6 // 10)
            bar(panel, middle, top + (pitch - thick) // 2, reach * (bars_to - bars_from) / 2, thick, colour)
            if pitch >= size or chosen or best:
                shade = INK if chosen or best else DIM
                write(panel, name, MARGIN + 12, text_at, size, shade, bold=best)
                write(panel, q_value(decision.q[action]), PANEL_WIDTH - MARGIN, text_at, size, shade, align="right")
        panel[ROWS_AT : ROWS_AT + pitch * len(self._names), middle] = DIM

    def _draw_value(self, panel: Picture, top: int) -> None:
        """Draw the value over the last seconds, with lost lives, and with rewards where they are rare."""
        write(panel, "value", MARGIN, top, 13, bold=True)
        write(panel, f"largest Q, last {WINDOW_SECONDS:g} s", MARGIN + 50, top + 2, 11, DIM)
        left, right, high, low = MARGIN, PANEL_WIDTH - MARGIN, top + 28, len(panel) - 16
        panel[low, left:right] = FAINT
        panel[high, left:right] = FAINT
        if not self._moments:
            return
        values = np.array([moment.value for moment in self._moments])
        write(panel, q_value(values[-1]), right, top, 15, bold=True, align="right")
        least, most = float(values.min()), float(values.max())
        x = np.linspace(left, right, self._moments.maxlen or 1)[-len(values) :]
        rare = sum(moment.reward != 0 for moment in self._moments) < len(values) / 2
        for at, moment in zip(x, self._moments, strict=True):
            if moment.life_lost:
                panel[high:low, round(at) - 1 : round(at) + 1] = RED
            if moment.reward and rare:
                bar(panel, at, low - 10, 2, 10, GREEN if moment.reward > 0 else RED)
        heights = (values - least) / (most - least) if most > least else np.full(len(values), 0.5)
        points = np.round(np.stack((x, low - 16 - heights * (low - high - 32)), axis=1) * 16).astype(np.int32)
        thickness = 2 if len(values) < (right - left) / 2 else 1
        cv2.polylines(panel, [points], False, BLUE, thickness, cv2.LINE_AA, shift=4)  # 4 bits behind the binary point
        digits = 3 if most - least > 0.01 else 5
        write(panel, q_value(most, digits), left + 4, high + 2, 10, DIM)
        write(panel, q_value(least, digits), left + 4, low - 14, 10, DIM)


def blank(height: int, width: int) -> Picture:
    return np.full((height, width, 3), PAPER, np.uint8)


def write(
    picture: Picture,
    text: str,
    x: int,
    y: int,
    size: int = 13,
    colour: Colour = INK,
    *,
    bold: bool = False,
    align: Literal["left", "right"] = "left",
) -> int:
    """Write a line of text with its top at `y` and its left or right edge at `x`; what reaches beyond the picture's
    right or lower edge is clipped. Returns its width. All lengths are in pixels."""
    mask = _mask(text, size, bold)
    width: int = mask.shape[1]
    left = x if align == "left" else max(0, x - width)
    place = picture[y : y + len(mask), left : left + width]
    strength = mask[: len(place), : place.shape[1], None]
    place[:] = (place + (np.asarray(colour, np.float32) - place) * strength).astype(np.uint8)
    return width


def bar(picture: Picture, x: float, y: int, width: float, height: int, colour: Colour) -> None:
    """Draw a filled rectangle, to the left of `x` for a negative width; at least a pixel wide unless the width is 0."""
    left, right = sorted((round(x), round(x + width)))
    picture[y : y + height, max(0, left) : max(right, left + (width != 0))] = colour


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
