"""One env to be watched: actions flow in; the frames the network was trained on, and every picture between, flow out,
with the score and the lives of that very moment.

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

from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.protocol import EnvSpec, Protocol
from atari_dqn.envs.single import make_emulator

Frame = npt.NDArray[Any]
Picture = npt.NDArray[np.uint8]

ATARI_FPS = 60
"""Emulator ticks a second on the console (NTSC)."""


def check_drawable(spec: EnvSpec) -> None:
    """Raise `ConfigError` when the env cannot draw itself."""
    if spec.is_atari:
        return
    mute = gym.make(spec.env_id, disable_env_checker=True)
    modes = mute.metadata.get("render_modes") or []
    mute.close()
    if "rgb_array" not in modes:
        raise ConfigError(f"{spec.env_id} cannot draw itself: it has no render mode rgb_array")


class FilmedEnv:
    """A single env under a protocol. `show` is called with every picture, [height, width, 3] uint8 RGB; without it the
    same games are played and nothing is drawn.

    `fps` is the pictures' natural speed. Raises `ConfigError` when the env cannot draw itself.
    """

    def __init__(self, spec: EnvSpec, protocol: Protocol, show: Callable[[Picture], None] | None) -> None:
        check_drawable(spec)
        self.spec = spec
        if spec.is_atari:
            emulator = make_emulator(spec, protocol, render_mode="rgb_array")
            self._shown = _Shown(emulator, show, protocol.noop_max)
            self._env: gym.Env[Any, Any] = AtariPreprocessing(self._shown, noop_max=0, frame_skip=4, screen_size=84)
            self.fps, self.pictures_per_step = ATARI_FPS, 4
        else:
            # Drawing is into memory: without this SDL looks for a screen, and complains where there is none.
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
            plain = gym.make(spec.env_id, render_mode="rgb_array", disable_env_checker=True)
            self._env = self._shown = _Shown(plain, show, noop_max=0)
            self.fps, self.pictures_per_step = round(plain.metadata.get("render_fps") or 30), 1
        self._first_action = int(self._env.action_space.start)  # type: ignore[attr-defined]

    @property
    def score(self) -> float:
        """Raw, up to the newest picture."""
        return self._shown.score

    @property
    def lives(self) -> int | None:
        """At the newest picture; None in an env that does not tell."""
        return self._shown.lives

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

    def __init__(self, env: gym.Env[Any, Any], show: Callable[[Picture], None] | None, noop_max: int) -> None:
        super().__init__(env)
        self._show, self._noop_max = show, noop_max
        self.score = 0.0
        self.lives: int | None = None

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(action)
        _, reward, _, _, info = result
        self.score += float(info.get("raw_reward", reward))
        self._look(info)
        return result

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        result = self.env.reset(seed=seed, options=options)
        self.score = 0.0
        self._look(result[1])
        # As AtariVectorEnv draws them; AtariPreprocessing's own would be 1 to noop_max.
        for _ in range(int(self.unwrapped.np_random.integers(max(1, self._noop_max)))):
            self.step(0)
        self.score = 0.0  # as elsewhere, a game's score begins with its first decision
        return result

    def _look(self, info: dict[str, Any]) -> None:
        self.lives = info.get("lives")
        if self._show is not None:
            picture: Any = self.env.render()
            self._show(np.asarray(picture, dtype=np.uint8))
