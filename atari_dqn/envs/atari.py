"""A game's ROM and actions flow in; 84x84 grey frames, raw rewards, ends and lives of several emulators flow out.

The same pixels, rewards and ends as gymnasium's `AtariPreprocessing` and ale-py's `AtariVectorEnv`, stepped on the
caller's own thread: in a worker with few envs the latter's hand-over to a thread and back cost a fifth of each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from ale_py import roms
from gymnasium.spaces import Box, Discrete
from gymnasium.vector.utils import batch_space

from atari_dqn.envs.step import StepResult

SIZE = 84


class AtariGames(gym.vector.VectorEnv[npt.NDArray[np.uint8], npt.NDArray[np.integer[Any]], npt.NDArray[Any]]):
    """`num_envs` emulators of one game with gymnasium's vector interface and next-step autoreset.

    An action lasts 4 frames; the pixelwise maximum of the last two, resized to 84x84, is the observation,
    [num_envs, 84, 84] uint8. `info` has `lives` and `episode_frame_number`, [num_envs] int32. A game begins with
    0 to `noop_max - 1` frames of no-op, then FIRE if `fire_reset`, and is truncated after `max_episode_frames` more.
    All arrays returned are views of `out` and overwritten by the next call.
    """

    def __init__(
        self,
        rom: str,
        num_envs: int,
        *,
        repeat_action_probability: float,
        full_action_space: bool,
        noop_max: int,
        fire_reset: bool,
        max_episode_frames: int,
        out: StepResult | None = None,
    ) -> None:
        self.out = out if out is not None else StepResult.empty(num_envs, (SIZE, SIZE), np.dtype(np.uint8))
        self._info = {"lives": self.out.lives, "episode_frame_number": np.zeros(num_envs, np.int32)}
        path = roms.get_rom_path(rom)
        assert path is not None, "every registered game's ROM comes in ale-py's wheel"
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        cv2.setNumThreads(1)  # a frame is too small to share out, and the other cores have envs of their own
        self._games = [
            _Game(path, frame, repeat_action_probability, noop_max, fire_reset, max_episode_frames)
            for frame in self.out.frames
        ]
        self._actions = self._games[0].actions(full_action_space)
        self.num_envs, self.num_actions = num_envs, len(self._actions)
        self.single_observation_space = Box(0, 255, (SIZE, SIZE), np.uint8)
        self.single_action_space = Discrete(self.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def reset(  # type: ignore[override]
        self, *, seed: Sequence[int], options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """Begin a game from its seed (31 bits) in every env, or where `options["reset_mask"]` (bool [num_envs]) is."""
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        for env, game in enumerate(self._games):
            if mask[env]:
                game.seed(seed[env])
                self._begin(env, game)
        return self.out.frames, self._info

    def step(
        self, actions: npt.NDArray[np.integer[Any]]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Act for 4 frames in every env; one whose game has just ended begins another instead."""
        out = self.out
        for env, action in enumerate(actions.tolist()):
            game = self._games[env]
            if game.over:
                self._begin(env, game)
                continue
            lives = game.lives
            out.rewards[env] = out.raw_rewards[env] = game.act(self._actions[action])
            out.terminated[env] = game.terminated
            out.truncated[env] = game.over and not game.terminated
            out.lives[env] = game.lives
            out.life_lost[env] = game.lives < lives and not game.terminated
            out.is_reset[env] = False
            self._info["episode_frame_number"][env] = game.frame_number
        return out.frames, out.rewards, out.terminated, out.truncated, self._info

    def _begin(self, env: int, game: _Game) -> None:
        game.begin()
        out = self.out
        out.rewards[env] = out.raw_rewards[env] = out.terminated[env] = out.truncated[env] = out.life_lost[env] = 0
        out.lives[env] = game.lives
        out.is_reset[env] = True
        self._info["episode_frame_number"][env] = game.frame_number


class _Game:
    """One emulator. Its newest observation lies in `frame`, [84, 84] uint8."""

    def __init__(
        self,
        rom: Path,
        frame: npt.NDArray[np.uint8],
        repeat_action_probability: float,
        noop_max: int,
        fire_reset: bool,
        max_frames: int,
    ) -> None:
        self._rom, self._frame, self._max_frames = rom, frame, max_frames
        self._noop_max, self._fire_reset = noop_max, fire_reset
        self._emulator = ale_py.ALEInterface()
        self._emulator.setFloat("repeat_action_probability", repeat_action_probability)
        self.over = self.terminated = False
        self.lives = self.frame_number = 0

    def actions(self, full: bool) -> list[ale_py.Action]:
        self._emulator.loadROM(self._rom)
        return self._emulator.getLegalActionSet() if full else self._emulator.getMinimalActionSet()

    def seed(self, seed: int) -> None:
        """What follows is a function of `seed` and the actions alone."""
        self._emulator.setInt("random_seed", seed)
        self._emulator.loadROM(self._rom)  # which is when the emulator takes the seed
        self._rng = np.random.default_rng(seed)
        height, width = self._emulator.getScreenDims()
        self._latest, self._before = np.zeros((2, height, width), np.uint8)

    def begin(self) -> None:
        emulator = self._emulator
        emulator.reset_game()
        for _ in range(self._rng.integers(max(1, self._noop_max))):
            emulator.act(ale_py.Action.NOOP)
            if emulator.game_over():
                emulator.reset_game()
        if self._fire_reset and ale_py.Action.FIRE in emulator.getMinimalActionSet():
            emulator.act(ale_py.Action.FIRE)
        self._last_frame = emulator.getEpisodeFrameNumber() + self._max_frames
        self._before.fill(0)
        emulator.getScreenGrayscale(self._latest)
        self.over = self.terminated = False
        self._observe()

    def act(self, action: ale_py.Action) -> int:
        """The reward of 4 frames of `action`; of fewer if the game ends."""
        emulator = self._emulator
        act, game_over = emulator.act, emulator.game_over
        reward = act(action)
        if not game_over():
            reward += act(action)
        if not game_over():
            reward += act(action)
        if not game_over():
            emulator.getScreenGrayscale(self._before)
            reward += act(action)
        if not game_over():
            emulator.getScreenGrayscale(self._latest)
        self.terminated = game_over()
        self._observe()
        self.over = self.terminated or self.frame_number >= self._last_frame
        return reward

    def _observe(self) -> None:
        np.maximum(self._latest, self._before, out=self._latest)
        cv2.resize(self._latest, (SIZE, SIZE), dst=self._frame, interpolation=cv2.INTER_AREA)
        self.lives = self._emulator.lives()
        self.frame_number = self._emulator.getEpisodeFrameNumber()
