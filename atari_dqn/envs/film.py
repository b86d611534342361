"""Single environment for filming: besides the frames of training, every picture in between, with score and lives.

Training steps Atari games natively and sees one frame in four. Here gymnasium's own preprocessing, which gives the same
frames pixel for pixel, wraps an emulator that shows each of its ticks in colour.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.plain import raw_reward
from atari_dqn.envs.protocol import FRAME_SKIP, EnvSpec, Protocol
from atari_dqn.envs.single import AnyEnv, NoOpStart, make_emulator, make_plain, opened, preprocess

Frame = npt.NDArray[Any]
Picture = npt.NDArray[np.uint8]

ATARI_FPS = 60
"""Emulator frames per second of the console (NTSC)."""


def check_drawable(spec: EnvSpec) -> None:
    """Raise `ConfigError` if the environment cannot render itself."""
    if spec.is_atari:
        return
    with opened(spec.env_id) as env:
        modes = env.metadata.get("render_modes") or []
    if "rgb_array" not in modes:
        raise ConfigError(f"{spec.env_id} cannot draw itself: it has no render mode rgb_array")


class FilmedEnv:
    """Single environment that shows every picture while it is played."""

    fps: int
    """Natural speed of the pictures, per second."""
    pictures_per_step: int
    """Pictures shown for each environment step."""

    def __init__(self, spec: EnvSpec, protocol: Protocol, show: Callable[[Picture], None] | None) -> None:
        """Make the environment; `show` gets every picture, [height, width, 3] uint8 RGB, or is None to draw nothing.

        Raises:
            ConfigError: The environment cannot render itself.
        """
        check_drawable(spec)
        self.spec = spec
        if spec.is_atari:
            self._shown = _Shown(make_emulator(spec, protocol, render_mode="rgb_array"), show)
            self._env = preprocess(NoOpStart(self._shown, protocol))
            self.fps, self.pictures_per_step = ATARI_FPS, FRAME_SKIP
        else:
            # Rendering is into memory: without this SDL looks for a screen and complains if there is none.
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
            plain = make_plain(spec.env_id, render_mode="rgb_array")
            self._env = self._shown = _Shown(plain, show)
            self.fps, self.pictures_per_step = round(plain.metadata.get("render_fps") or 30), 1
        self._first_action = int(self._env.action_space.start)  # type: ignore[attr-defined]

    @property
    def score(self) -> float:
        """Unclipped return up to the newest picture."""
        return self._shown.score

    @property
    def lives(self) -> int | None:
        """Lives left at the newest picture; None if the environment does not report them."""
        return self._shown.lives

    def reset(self, seed: int) -> Frame:
        """Start a game. Returns its first frame, of the spec's shape and dtype."""
        observation, _ = self._env.reset(seed=seed)
        self._shown.score = 0.0  # a game's score starts with its first decision, after the no-ops
        return self._frame(observation)

    def step(self, action: int) -> tuple[Frame, float, bool]:
        """Take `action` (0 to num_actions - 1). Returns the next frame, the raw reward, and True at the game's end."""
        observation, reward, terminated, truncated, _ = self._env.step(self._first_action + action)
        return self._frame(observation), float(reward), terminated or truncated

    def close(self) -> None:
        self._env.close()

    def _frame(self, observation: Any) -> Frame:
        return np.asarray(observation, dtype=self.spec.frame_dtype).reshape(self.spec.frame_shape)


class _Shown(gym.Wrapper[Any, Any, Any, Any]):
    """Shows the picture after every step, and keeps score and lives up to it."""

    def __init__(self, env: AnyEnv, show: Callable[[Picture], None] | None) -> None:
        super().__init__(env)
        self._show = show
        self.score = 0.0
        self.lives: int | None = None

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        _, reward, _, _, info = result
        self.score += raw_reward("", reward, info)
        self._draw(info)
        return result

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(seed=seed, options=options)
        self.score = 0.0
        self._draw(result[1])
        return result

    def _draw(self, info: dict[str, Any]) -> None:
        lives = info.get("lives")
        self.lives = int(lives) if isinstance(lives, int | np.integer) else None
        if self._show is not None:
            picture: Any = self.env.render()
            self._show(np.asarray(picture, dtype=np.uint8))
