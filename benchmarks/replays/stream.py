"""Synthetic games, the same for every replay, and a check of drawn transitions against them.

Every frame has the number of its tick in its first eight pixels, so that a wrongly gathered stack is detected. Only
numpy is imported here, because every replay's environment runs it.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

STACK, EPISODE = 4, 400
"""Frames per observation, and steps per episode, as in a typical game."""


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of N envs."""

    obs: npt.NDArray[np.uint8]
    """[N, stack, side, side] or [N, side, side, stack] uint8; oldest frame first."""
    actions: npt.NDArray[np.int64]
    """[N]"""
    rewards: npt.NDArray[np.float32]
    """[N]"""
    next_obs: npt.NDArray[np.uint8]
    """Like `obs`."""
    ends: bool
    """Whether this step ends the games of all envs."""


class Stream:
    """Games of noise for `num_envs` envs with frames of `side` x `side` pixels; `side` is at least 8."""

    def __init__(self, num_envs: int, side: int, *, stack_last: bool = False, seed: int = 1) -> None:
        self.tick, self._stack_last = 0, stack_last
        self._num_envs, self._rng = num_envs, np.random.default_rng(seed)
        self._noise = self._rng.integers(256, size=(64, num_envs, side, side), dtype=np.uint8)
        self._stacks = self._first()

    def step(self) -> Step:
        """The next step, in arrays of its own."""
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
        """Stacks at the start of a game: its first frame repeated."""
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
    """Find the transitions that are not two consecutive stacks of one game.

    Args:
        obs: [B, stack, side, side], or with the stack last.
        next_obs: Like `obs`; ignored after the last step of a game, because nothing is learned from it.
        newest: Current tick of the stream.
        stack_last: Whether the stack is the last dimension.

    Returns:
        [B] bool.
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
    """[B, stack] int64: the tick in each frame."""
    return np.ascontiguousarray(stacks[:, :, 0, :8]).view("<i8")[..., 0]
