"""One env to be watched: actions flow in; the frames the network was trained on, and every picture between, flow out.

Training steps Atari games natively and sees one frame in four. Here gymnasium's own `AtariPreprocessing`, which makes
the same frames pixel for pixel, runs over an emulator that hands out each of its ticks in colour.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.wrappers import AtariPreprocessing

from atari_dqn.config import ConfigError
from atari_dqn.envs.make import EnvSpec, Protocol

Frame = npt.NDArray[Any]
Picture = npt.NDArray[np.uint8]

ATARI_FPS = 60
"""Emulator ticks a second on the console (NTSC)."""


class FilmedEnv:
    """A single env under a protocol. `show` is called with every picture, [height, width, 3] uint8 RGB.

    `fps` is the pictures' natural speed. Raises `ConfigError` when the env cannot draw itself.
    """

    def __init__(self, spec: EnvSpec, protocol: Protocol, show: Callable[[Picture], None]) -> None:
        self.spec = spec
        if spec.is_atari:
            emulator = gym.make(
                spec.env_id,
                frameskip=1,
                obs_type="grayscale",
                repeat_action_probability=protocol.repeat_action_probability,
                full_action_space=protocol.full_action_space,
                max_num_frames_per_episode=protocol.max_episode_frames,
                render_mode="rgb_array",
            )
            shown = _Shown(emulator, show, protocol.noop_max)
            self._env: gym.Env[Any, Any] = AtariPreprocessing(shown, noop_max=0, frame_skip=4, screen_size=84)
            self.fps = ATARI_FPS
        else:
            # Drawing is into memory: without this SDL looks for a screen, and complains where there is none.
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
            mute = gym.make(spec.env_id, disable_env_checker=True)
            modes = mute.metadata.get("render_modes") or []
            mute.close()
            if "rgb_array" not in modes:
                raise ConfigError(f"{spec.env_id} cannot draw itself: it has no render mode rgb_array")
            plain = gym.make(spec.env_id, render_mode="rgb_array", disable_env_checker=True)
            self._env = _Shown(plain, show, noop_max=0)
            self.fps = round(plain.metadata.get("render_fps") or 30)
        self._first_action = int(self._env.action_space.start)  # type: ignore[attr-defined]

    def reset(self, seed: int) -> Frame:
        """Start a game. Returns its first frame, of the spec's shape and dtype."""
        return self._frame(self._env.reset(seed=seed)[0])

    def step(self, action: int) -> tuple[Frame, float, bool]:
        """Take `action` (0 to num_actions - 1). Returns the next frame, the raw reward, and True at the game's end."""
        observation, reward, terminated, truncated, _ = self._env.step(self._first_action + action)
        return self._frame(observation), float(reward), terminated or truncated

    def close(self) -> None:
        self._env.close()

    def _frame(self, observation: Any) -> Frame:
        return np.asarray(observation, dtype=self.spec.frame_dtype).reshape(self.spec.frame_shape)


class _Shown(gym.Wrapper[Any, Any, Any, Any]):
    """Hands out the picture after every step, and begins an episode with 0 to `noop_max - 1` no-ops."""

    def __init__(self, env: gym.Env[Any, Any], show: Callable[[Picture], None], noop_max: int) -> None:
        super().__init__(env)
        self._show, self._noop_max = show, noop_max

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        self._show(self._picture())
        return result

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(seed=seed, options=options)
        self._show(self._picture())
        # As AtariVectorEnv draws them; AtariPreprocessing's own would be 1 to noop_max.
        for _ in range(int(self.unwrapped.np_random.integers(max(1, self._noop_max)))):
            self.step(0)
        return result

    def _picture(self) -> Picture:
        picture: Any = self.env.render()
        return np.asarray(picture, dtype=np.uint8)
