"""Vector environment of ALE emulators, stepped on the caller's own thread.

It gives the same pixels, rewards and episode ends as gymnasium's `AtariPreprocessing` and ale-py's `AtariVectorEnv`. In
a worker with few environments, the latter's hand-over to a thread and back would cost a fifth of each step.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ale_py
import cv2
import numpy as np
import numpy.typing as npt
from ale_py import roms

from atari_dqn.envs.protocol import FRAME_SIZE, Protocol
from atari_dqn.envs.step import StepResult


class AtariGames:
    """Emulators of one game with next-step autoreset, which write their results to `out`.

    A frame, [84, 84] uint8, is the pixelwise maximum of the last two of an action's 4 frames, resized.
    """

    def __init__(self, rom: str, protocol: Protocol, out: StepResult) -> None:
        """Start the emulators of `rom`, ALE's name of a game such as "breakout", presented as `protocol` says."""
        self.out = out
        path = roms.get_rom_path(rom)
        assert path is not None, "every registered game's ROM comes in ale-py's wheel"
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        cv2.setNumThreads(1)  # a frame is too small to split, and the other cores run environments of their own
        self._games = [_Game(path, protocol, frame) for frame in out.frames]
        self.actions = self._games[0].actions()
        """The console's actions, by the number that `step` takes."""

    def reset(self, seeds: Sequence[int]) -> None:
        """Start a game from its seed (31 bits) in every emulator, but for those whose seed is negative."""
        for env, seed in enumerate(seeds):
            if seed >= 0:
                self._games[env].seed(int(seed))
                self._start_game(env)

    def step(self, actions: npt.NDArray[np.integer[Any]]) -> None:
        """Take an action for 4 frames in every emulator; one whose game has just ended starts another instead."""
        out = self.out
        for env, action in enumerate(actions.tolist()):
            game = self._games[env]
            if game.over:
                self._start_game(env)
                continue
            lives = game.lives
            out.rewards[env] = out.raw_rewards[env] = game.act(self.actions[action])
            out.terminated[env] = game.terminated
            out.truncated[env] = game.over and not game.terminated
            out.lives[env] = game.lives
            out.life_lost[env] = game.lives < lives and not game.terminated  # a bonus life raises them
            out.is_reset[env] = False

    def close(self) -> None:
        """Do nothing: an emulator ends with its object."""

    def _start_game(self, env: int) -> None:
        self._games[env].start()
        self.out.put_reset(env)
        self.out.lives[env] = self._games[env].lives


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
