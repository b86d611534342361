"""Breakout with gym's old interface, for peers that were written for it.

`reset` returns the observation alone, `step` returns four values, and `seed` is a method of its own.
"""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium
import numpy as np


class OldBreakout:
    """The emulator without any wrapper: one frame [210, 160, 3] uint8 per step."""

    def __init__(self, game: str) -> None:
        gymnasium.register_envs(ale_py)
        self._env: Any = gymnasium.make(game, disable_env_checker=True).unwrapped
        self._seed: int | None = None

    @property
    def unwrapped(self) -> Any:
        return self._env

    def seed(self, seed: int) -> None:
        self._seed = seed

    def reset(self) -> np.ndarray:
        obs, _ = self._env.reset(seed=self._seed)
        self._seed = None  # only the first game is seeded
        return obs

    def step(self, action: int) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self._env.step(action)
        return obs, float(reward), terminated or truncated, info
