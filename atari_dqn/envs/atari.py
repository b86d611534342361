"""Vector environment of ALE emulators, stepped on the caller's own thread.

It gives the same pixels, rewards and episode ends as gymnasium's `AtariPreprocessing` and ale-py's `AtariVectorEnv`. In
a worker with few environments, the latter's hand-over to a thread and back would cost a fifth of each step.
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

from atari_dqn.envs.protocol import FRAME_SIZE, Protocol
from atari_dqn.envs.step import StepResult


class AtariGames(gym.vector.VectorEnv[npt.NDArray[np.uint8], npt.NDArray[np.integer[Any]], npt.NDArray[Any]]):
    """`num_envs` emulators of one game with gymnasium's vector interface and next-step autoreset.

    An observation, [num_envs, 84, 84] uint8, is the pixelwise maximum of the last two of an action's 4 frames, resized.
    `info` has `lives` and `episode_frame_number`, int32 [num_envs]. All arrays returned are views of `out` and
    overwritten by the next call.
    """

    def __init__(self, rom: str, num_envs: int, protocol: Protocol, out: StepResult | None = None) -> None:
        """Start the emulators.

        Args:
            rom: ALE's name of the game, such as "breakout".
            num_envs: Number of emulators.
            protocol: How the game is presented.
            out: Arrays to write results to; new ones by default.
        """
        frame_shape = (FRAME_SIZE, FRAME_SIZE)
        self.out = out if out is not None else StepResult.empty(num_envs, frame_shape, np.dtype(np.uint8))
        self._info = {"lives": self.out.lives, "episode_frame_number": np.zeros(num_envs, np.int32)}
        path = roms.get_rom_path(rom)
        assert path is not None, "every registered game's ROM comes in ale-py's wheel"
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        cv2.setNumThreads(1)  # a frame is too small to split, and the other cores run environments of their own
        self._games = [_Game(path, protocol, frame) for frame in self.out.frames]
        self._actions = self._games[0].actions()
        self.num_envs, self.num_actions = num_envs, len(self._actions)
        self.single_observation_space = Box(0, 255, frame_shape, np.uint8)
        self.single_action_space = Discrete(self.num_actions)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def reset(  # type: ignore[override]
        self, *, seed: Sequence[int], options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], dict[str, Any]]:
        """Start a game from its seed (31 bits) in every emulator, or only where `options["reset_mask"]` is True.

        Args:
            seed: One seed for each emulator.
            options: May hold `reset_mask`, bool [num_envs].

        Returns:
            The frames, [num_envs, 84, 84], and `info`.
        """
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        for env, game in enumerate(self._games):
            if mask[env]:
                game.seed(seed[env])
                self._start_game(env, game)
        return self.out.frames, self._info

    def step(
        self, actions: npt.NDArray[np.integer[Any]]
    ) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], dict[str, Any]]:
        """Take an action for 4 frames in every emulator; one whose game has just ended starts another game instead."""
        out = self.out
        for env, action in enumerate(actions.tolist()):
            game = self._games[env]
            if game.over:
                self._start_game(env, game)
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

    def _start_game(self, env: int, game: _Game) -> None:
        game.start()
        out = self.out
        out.rewards[env] = out.raw_rewards[env] = out.terminated[env] = out.truncated[env] = out.life_lost[env] = 0
        out.lives[env] = game.lives
        out.is_reset[env] = True
        self._info["episode_frame_number"][env] = game.frame_number


class _Game:
    """One emulator. It writes its observations to `frame`, [84, 84] uint8."""

    def __init__(self, rom: Path, protocol: Protocol, frame: npt.NDArray[np.uint8]) -> None:
        self._rom, self._protocol, self._frame = rom, protocol, frame
        self._emulator = ale_py.ALEInterface()
        self._emulator.setFloat("repeat_action_probability", protocol.repeat_action_probability)
        self.over = self.terminated = False
        self.lives = self.frame_number = 0

    def actions(self) -> list[ale_py.Action]:
        self._emulator.loadROM(self._rom)
        if self._protocol.full_action_space:
            return self._emulator.getLegalActionSet()
        return self._emulator.getMinimalActionSet()

    def seed(self, seed: int) -> None:
        """Make what follows a function of `seed` and the actions alone."""
        self._emulator.setInt("random_seed", seed)
        self._emulator.loadROM(self._rom)  # the emulator takes the seed only now
        self._rng = np.random.default_rng(seed)
        height, width = self._emulator.getScreenDims()
        self._latest, self._before = np.zeros((2, height, width), np.uint8)

    def start(self) -> None:
        emulator = self._emulator
        emulator.reset_game()
        for _ in range(self._protocol.draw_noops(self._rng)):
            emulator.act(ale_py.Action.NOOP)
            if emulator.game_over():
                emulator.reset_game()
        self._last_frame = emulator.getEpisodeFrameNumber() + self._protocol.max_episode_frames
        self._before.fill(0)
        emulator.getScreenGrayscale(self._latest)
        self.over = self.terminated = False
        self._observe()

    def act(self, action: ale_py.Action) -> int:
        """Repeat `action` for 4 frames, fewer if the game ends. Returns the reward."""
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
        cv2.resize(self._latest, (FRAME_SIZE, FRAME_SIZE), dst=self._frame, interpolation=cv2.INTER_AREA)
        self.lives = self._emulator.lives()
        self.frame_number = self._emulator.getEpisodeFrameNumber()
