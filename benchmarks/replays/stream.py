"""The same made-up games for every replay: flows out, one step of all envs at a time, whole stacks included, and
which drawn transitions were never put in. numpy alone, since it runs in everyone's environment.

Every frame carries the number of its tick in its first eight pixels, so a stack gathered wrongly shows.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

STACK, EPISODE = 4, 400
"""Frames in an observation, and decisions in an episode; about those of a middling game."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One decision of N envs."""

    obs: npt.NDArray[np.uint8]
    """[N, stack, side, side], or [N, side, side, stack]; oldest frame first"""
    actions: npt.NDArray[np.int64]
    """[N]"""
    rewards: npt.NDArray[np.float32]
    """[N]"""
    next_obs: npt.NDArray[np.uint8]
    """as `obs`"""
    ends: bool
    """every env's game is over with it; the next step begins new ones"""


class Stream:
    """Games of noise for `num_envs` envs with square frames of `side` pixels, 8 at least."""

    def __init__(self, num_envs: int, side: int, *, stack_last: bool = False, seed: int = 1) -> None:
        self.tick, self._stack_last = 0, stack_last
        self._num_envs, self._rng = num_envs, np.random.default_rng(seed)
        self._noise = self._rng.integers(256, size=(64, num_envs, side, side), dtype=np.uint8)
        self._stacks = self._first()

    def step(self) -> Step:
        """The next one; its arrays stay as they are."""
        self.tick += 1
        before = self._stacks
        after = np.concatenate((before[:, 1:], self._frames()[:, None]), axis=1)
        ends = (self.tick + 1) % (EPISODE + 1) == 0
        step = Step(
            self._laid_out(before),
            self._rng.integers(4, size=self._num_envs),
            self._rng.integers(-1, 2, size=self._num_envs).astype(np.float32),
            self._laid_out(after),
            ends,
        )
        if ends:
            self.tick += 1
            after = self._first()
        self._stacks = after
        return step

    def _first(self) -> npt.NDArray[np.uint8]:
        """Stacks at the start of a game: its first frame over and over."""
        return np.repeat(self._frames()[:, None], STACK, axis=1)

    def _frames(self) -> npt.NDArray[np.uint8]:
        frames = self._noise[self.tick % len(self._noise)].copy()
        frames[:, 0, :8] = np.frombuffer(self.tick.to_bytes(8, "little"), np.uint8)
        return frames

    def _laid_out(self, stacks: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(np.moveaxis(stacks, 1, -1)) if self._stack_last else stacks


def wrong(
    obs: npt.NDArray[Any], next_obs: npt.NDArray[Any], *, newest: int, stack_last: bool = False
) -> npt.NDArray[np.bool_]:
    """Which of [B, stack, side, side] (or with the stack last) are no consecutive stacks of one game: bool [B].

    `newest` is the stream's tick. Where a game's last decision was drawn, `next_obs` may be anything: nothing is
    learned from it.
    """
    ticks, next_ticks = (_ticks(np.moveaxis(stacks, -1, 1) if stack_last else stacks) for stacks in (obs, next_obs))
    now = ticks[:, -1]
    begun = now // (EPISODE + 1) * (EPISODE + 1)
    ends = (now + 2) % (EPISODE + 1) == 0
    lags = np.arange(STACK - 1, -1, -1)
    stacks_differ = (ticks != np.maximum(now[:, None] - lags, begun[:, None])).any(1)
    next_differ = (next_ticks != np.maximum(now[:, None] + 1 - lags, begun[:, None])).any(1) & ~ends
    return stacks_differ | next_differ | (now < 0) | (now >= newest)


def _ticks(stacks: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """[B, stack]: the number that each frame carries."""
    return np.ascontiguousarray(stacks[:, :, 0, :8]).view("<i8")[..., 0]
