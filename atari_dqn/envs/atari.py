"""A game's ROM and actions flow in; 84x84 grey frames, raw rewards, ends and lives of several emulators flow out.

The same pixels, rewards and ends as gymnasium's `AtariPreprocessing` and ale-py's `AtariVectorEnv`, stepped on the
caller's own thread: in a worker with few envs the latter's hand-over to a thread and back cost a fifth of each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from ale_py import roms
from gymnasium.spaces import Box, Discrete
from gymnasium.vector.utils import batch_space

SIZE, SKIP = 84, 4
Info = dict[str, npt.NDArray[np.int32]]


class AtariGames(gym.vector.VectorEnv[npt.NDArray[np.uint8], npt.NDArray[np.integer[Any]], npt.NDArray[Any]]):
    """`num_envs` emulators of one game with gymnasium's vector interface and next-step autoreset.

    An action lasts 4 frames; the pixelwise maximum of the last two, resized to 84x84, is the observation,
    [num_envs, 84, 84] uint8. `info` has `lives` and `episode_frame_number`, [num_envs] int32. A game begins with
    0 to `noop_max - 1` frames of no-op, then FIRE if `fire_reset`, and is truncated after `max_episode_frames` more.
    The arrays returned are overwritten by the next call. A game is a function of its seed and actions alone.
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
    ) -> None:
        self.num_envs = num_envs
        self._noop_max, self._fire_reset, self._max_frames = noop_max, fire_reset, max_episode_frames
        path = roms.get_rom_path(rom)
        assert path is not None, "every registered game's ROM comes in ale-py's wheel"
        self._rom = path
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
        cv2.setNumThreads(1)  # a frame is too small to share out, and the cores belong to the other workers
        self._emulators = [ale_py.ALEInterface() for _ in range(num_envs)]
        for emulator in self._emulators:
            emulator.setFloat("repeat_action_probability", repeat_action_probability)
        first = self._emulators[0]
        first.loadROM(self._rom)
        self._actions = first.getLegalActionSet() if full_action_space else first.getMinimalActionSet()
        height, width = first.getScreenDims()
        self._screens = np.zeros((num_envs, 2, height, width), np.uint8)
        self._noops = [np.random.default_rng() for _ in range(num_envs)]
        self._begins = np.zeros(num_envs, np.int32)

        self._frames = np.zeros((num_envs, SIZE, SIZE), np.uint8)
        self._rewards = np.zeros(num_envs, np.float64)
        self._terminated = np.zeros(num_envs, np.bool_)
        self._truncated = np.zeros(num_envs, np.bool_)
        self._info: Info = {name: np.zeros(num_envs, np.int32) for name in ("lives", "episode_frame_number")}

        self.single_observation_space = Box(0, 255, (SIZE, SIZE), np.uint8)
        self.single_action_space = Discrete(len(self._actions))
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}

    def reset(  # type: ignore[override]
        self, *, seed: Sequence[int], options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.uint8], Info]:
        """Begin a game in every env, each from its seed (31 bits)."""
        for env, (emulator, one) in enumerate(zip(self._emulators, seed, strict=True)):
            emulator.setInt("random_seed", int(one))
            emulator.loadROM(self._rom)  # which is when the emulator takes the seed
            self._noops[env] = np.random.default_rng(int(one))
            self._begin(env)
        return self._frames, self._info

    def step(
        self, actions: npt.NDArray[np.integer[Any]]
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float64], npt.NDArray[np.bool_], npt.NDArray[np.bool_], Info]:
        """Act for 4 frames in every env; one whose game has just ended begins another instead."""
        for env, action in enumerate(actions):
            if self._terminated[env] or self._truncated[env]:
                self._begin(env)
            else:
                self._act(env, action)
        return self._frames, self._rewards, self._terminated, self._truncated, self._info

    def _begin(self, env: int) -> None:
        emulator, screens = self._emulators[env], self._screens[env]
        emulator.reset_game()
        for _ in range(self._noops[env].integers(self._noop_max) if self._noop_max else 0):
            emulator.act(ale_py.Action.NOOP)
            if emulator.game_over():
                emulator.reset_game()
        if self._fire_reset and ale_py.Action.FIRE in self._actions:
            emulator.act(ale_py.Action.FIRE)
        self._begins[env] = emulator.getEpisodeFrameNumber()
        screens[1] = 0
        emulator.getScreenGrayscale(screens[0])
        self._rewards[env] = self._terminated[env] = self._truncated[env] = 0
        self._observe(env)

    def _act(self, env: int, action: int) -> None:
        emulator, screens = self._emulators[env], self._screens[env]
        code = self._actions[action]
        reward = 0
        for left in reversed(range(SKIP)):
            reward += emulator.act(code)
            if emulator.game_over():
                break
            if left < 2:
                emulator.getScreenGrayscale(screens[left])
        self._rewards[env] = reward
        self._terminated[env] = over = emulator.game_over()
        self._truncated[env] = not over and emulator.getEpisodeFrameNumber() - self._begins[env] >= self._max_frames
        self._observe(env)

    def _observe(self, env: int) -> None:
        emulator, (latest, before) = self._emulators[env], self._screens[env]
        np.maximum(latest, before, out=latest)
        cv2.resize(latest, (SIZE, SIZE), dst=self._frames[env], interpolation=cv2.INTER_AREA)
        self._info["lives"][env] = emulator.lives()
        self._info["episode_frame_number"][env] = emulator.getEpisodeFrameNumber()
