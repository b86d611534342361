"""Single environment for filming: besides the frames of training, every picture in between, with score and lives.

Training steps Atari games natively and sees one frame in four. Here gymnasium's own preprocessing, which gives the same
frames pixel for pixel, wraps an emulator that shows each of its ticks in colour.
"""

import contextlib
import os
from collections.abc import Callable
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt

from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.plain import raw_reward, true_or_false
from atari_dqn.envs.protocol import FRAME_SKIP, GAME_LIMIT, PROTOCOLS, EnvSpec, Protocol
from atari_dqn.envs.single import (
    AnyEnv,
    NoOpStart,
    action_names_of,
    explained,
    limited,
    make_emulator,
    make_plain,
    opened,
    preprocess,
    time_limit,
)

Frame = npt.NDArray[Any]
Picture = npt.NDArray[np.uint8]

ATARI_FPS = 60
"""Emulator frames per second of the console (NTSC)."""


def check_drawable(spec: EnvSpec) -> None:
    """Raise `ConfigError` unless the environment draws a first picture that can be filmed."""
    if spec.is_atari:
        return
    with contextlib.closing(FilmedEnv(spec, PROTOCOLS["nature"], lambda picture: None)) as env:
        env.reset(seed=0)


def _check_modes(spec: EnvSpec) -> None:
    """Raise `ConfigError` if the environment cannot render itself: making it for that may fail in any way."""
    with opened(spec.env_id, spec.wrapper, **spec.kwargs) as env:
        drawable = "rgb_array" in ((env.metadata or {}).get("render_modes") or [])
    if not drawable:
        raise ConfigError(f"{spec.env_id} cannot draw itself: it has no render mode rgb_array")


class FilmedEnv:
    """Single environment that shows every picture while it is played.

    Whatever a user's environment raises, except in `close`, becomes a `ConfigError`.
    """

    action_names: tuple[str, ...]
    """Names of the actions, [num_actions]."""
    fps: int
    """Natural speed of the pictures, per second."""
    cut = False
    """Whether a time limit ended the newest game."""
    limit: int
    """Env steps after which a game should end."""
    pictures_per_step: int
    """Pictures shown for each env step."""

    def __init__(self, spec: EnvSpec, protocol: Protocol, show: Callable[[Picture], None] | None) -> None:
        """Make the environment; `show` gets every picture, [height, width, 3] uint8 RGB, or is None to draw nothing.

        Raises:
            ConfigError: The environment cannot render itself.
        """
        self.spec = spec
        if spec.is_atari:
            self._shown = _Shown(make_emulator(spec, protocol, render_mode="rgb_array"), spec, show)
            self._env = preprocess(NoOpStart(self._shown, protocol))
            self.fps, self.pictures_per_step = ATARI_FPS, FRAME_SKIP
            self.limit = protocol.max_episode_frames // FRAME_SKIP
        else:
            _check_modes(spec)
            # Rendering is into memory: without this SDL looks for a screen and complains if there is none.
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
            with explained(f"cannot film {spec.env_id}: "):
                plain = make_plain(spec.env_id, spec.wrapper, **{**spec.kwargs, "render_mode": "rgb_array"})
            self._shown = _Shown(plain, spec, show)
            self._env = limited(self._shown, GAME_LIMIT)
            self.limit = time_limit(plain) or GAME_LIMIT
            self.fps, self.pictures_per_step = _fps(plain.metadata.get("render_fps")), 1
        self.action_names = action_names_of(self._env, spec)

    @property
    def score(self) -> float:
        """Unclipped return up to the newest picture."""
        return self._shown.score

    @property
    def lives(self) -> int | None:
        """Lives left at the newest picture of an Atari game; None in other environments."""
        return self._shown.lives

    def reset(self, seed: int) -> Frame:
        """Start a game. Returns its first frame, of the spec's shape and dtype."""
        observation, _ = self._env.reset(seed=seed)
        self._shown.score = 0.0  # a game's score starts with its first decision, after the no-ops
        return self._frame(observation)

    def step(self, action: int) -> tuple[Frame, float, bool]:
        """Take `action` (0 to num_actions - 1). Returns the next frame, the raw reward, and True at the game's end."""
        observation, reward, terminated, truncated, _ = self._env.step(self.spec.first_action + action)
        self.cut = truncated and not terminated
        return self._frame(observation), float(reward), terminated or truncated

    def close(self) -> None:
        with contextlib.suppress(Exception, SystemExit):  # nothing is lost any more
            self._env.close()

    def _frame(self, observation: Any) -> Frame:
        with explained(f"cannot play {self.spec.env_id}: "):
            return np.asarray(observation, dtype=self.spec.frame_dtype).reshape(self.spec.frame_shape)


class _Shown(gym.Wrapper[Any, Any, Any, Any]):
    """Shows the picture after every step, and keeps score and lives up to it."""

    def __init__(self, env: AnyEnv, spec: EnvSpec, show: Callable[[Picture], None] | None) -> None:
        super().__init__(env)
        self._env_id, self._is_atari, self._show, self._rgb = spec.env_id, spec.is_atari, show, _Rgb(spec.env_id)
        self.score = 0.0
        self.lives: int | None = None

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        with explained(f"cannot play {self._env_id}: "):
            observation, reward, terminated, truncated, info = self.env.step(action)
        self.score += raw_reward(f"{self._env_id}: ", reward, info)
        terminated = true_or_false(f"{self._env_id}: terminated", terminated)
        truncated = true_or_false(f"{self._env_id}: truncated", truncated)
        self._draw(info)
        return observation, reward, terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        with explained(f"cannot play {self._env_id}: "):
            observation, info = self.env.reset(seed=seed, options=options)
        self.score = 0.0
        self._draw(info)
        return observation, info

    def _draw(self, info: dict[str, Any]) -> None:
        self.lives = info["lives"] if self._is_atari else None
        if self._show is None:
            return
        with explained(f"cannot film {self._env_id}: render() raised "):
            picture: Any = self.env.render()
        self._show(self._rgb(picture))


class _Rgb:
    """Converts what an environment's `render` returns to RGB pictures, all of the first one's size."""

    def __init__(self, env_id: str) -> None:
        self._env_id = env_id
        self._largest = 0.0
        """Largest value so far, which tells pictures from 0 to 1 and from 0 to 65,535."""
        self._size: tuple[int, int] | None = None
        """Width and height of the first picture."""

    def __call__(self, rendered: Any) -> Picture:
        """[height, width, 3] uint8 of a grey, RGB or RGBA picture of any dtype. Raises `ConfigError` for another."""
        try:
            picture = np.asarray(rendered)
        except ValueError:  # a list of unequal pictures
            picture = np.empty(0, object)
        if picture.ndim == 3 and picture.shape[0] in (1, 3, 4) and picture.shape[2] not in (1, 3, 4):
            picture = picture.transpose(1, 2, 0)
        if picture.ndim == 2:
            picture = picture[..., None]
        *_, depth = picture.shape or (0,)
        if picture.ndim != 3 or depth not in (1, 3, 4) or not picture.size or picture.dtype.kind not in "biuf":
            what = f"an array {list(picture.shape)} of {picture.dtype}" if picture.ndim else repr(rendered)[:60]
            raise ConfigError(f"cannot film {self._env_id}: render() returned {what}; try uint8 [height, width, 3]")
        colours = np.repeat(picture, 3, axis=2) if depth == 1 else picture[..., :3]
        if picture.dtype != np.uint8:
            colours = np.nan_to_num(colours.astype(np.float32), posinf=0.0)
            self._largest = max(self._largest, float(colours.max()))
            fractions = picture.dtype.kind in "bf" and self._largest <= 1
            colours = (colours * (255 if fractions else 255 / 65_535 if self._largest > 255 else 1)).round()
        drawn = np.ascontiguousarray(colours.clip(0, 255), np.uint8)
        self._size = self._size or (drawn.shape[1], drawn.shape[0])
        if drawn.shape[1::-1] != self._size:
            drawn = np.asarray(cv2.resize(drawn, self._size, interpolation=cv2.INTER_AREA), np.uint8)
        return drawn


def _fps(stated: Any) -> int:
    """Pictures a second as an environment's metadata say; 30 unless that is from 1 to 240."""
    try:
        fps = round(float(stated))
    except (TypeError, ValueError, OverflowError):
        return 30
    return fps if 1 <= fps <= 240 else 30
