"""CleanRL's DQN for Atari, written anew with the settings of its script `cleanrl/dqn_atari.py` (commit fe8d8a0).

That is: Adam of 1e-4, gamma 0.99, batches of 32 every 4 env steps after 80,000, mean squared error, a target every
1,000 env steps, epsilon from 1 to 0.01 over the first tenth of 10 million env steps, a replay of a million. One env in
the learner's own process with the wrappers of OpenAI Baselines' line, imported as CleanRL did from Stable-Baselines3,
and the resizing and greying of gymnasium 0.28, which it pins (later ones grey with other weights).

What differs, and not in what is learned: the replay keeps each frame once, on disk (7 GB instead of 28), there is no
vector env around the one env, no logging, and no gradient is recorded while acting.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import ale_py
import cv2
import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.spaces import Box
from gymnasium.wrappers import FrameStackObservation, TransformObservation
from stable_baselines3.common.atari_wrappers import (
    ClipRewardEnv,
    EpisodicLifeEnv,
    FireResetEnv,
    MaxAndSkipEnv,
    NoopResetEnv,
)

from benchmarks.peers.contestants.cleanrl import QNetwork
from benchmarks.race.peers.replay import FrameReplay
from benchmarks.race.peers.session import DONE, STOPPED, Session

TOTAL, EXPLORATION, FINAL_EPSILON = 10_000_000, 1_000_000, 0.01
LEARNING_STARTS, TRAIN_EVERY, TARGET_EVERY = 80_000, 4, 1_000
LAYERS = {"conv1": "0", "conv2": "2", "conv3": "4", "hidden": "7", "q": "9"}
"""Names of an exported policy's layers, and their places in the network."""


def make_env(env_id: str) -> Any:
    gymnasium.register_envs(ale_py)
    env: Any = MaxAndSkipEnv(NoopResetEnv(gymnasium.make(env_id), noop_max=30), skip=4)
    env = EpisodicLifeEnv(env)
    if "FIRE" in env.unwrapped.get_action_meanings():
        env = FireResetEnv(env)
    env = TransformObservation(ClipRewardEnv(env), _grey, Box(0, 255, (84, 84), np.uint8))
    return FrameStackObservation(env, 4)


def _grey(rgb: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.resize(rgb, (84, 84), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)


class Training:
    def __init__(self, session: Session) -> None:
        self._session = session
        saved = session.load_state() or {"env_steps": 0, "updates": 0}
        self.env_steps: int = saved["env_steps"]
        self.updates: int = saved["updates"]
        seed = session.seed + self.env_steps
        torch.manual_seed(seed)
        random.seed(seed)
        self._env = make_env(session.env_id)
        self._env.action_space.seed(seed)
        num_actions = int(self._env.action_space.n)
        self._online, self._target = QNetwork(num_actions), QNetwork(num_actions)
        self._target.load_state_dict(self._online.state_dict())
        self._optimizer = torch.optim.Adam(self._online.parameters(), lr=1e-4)
        self._replay = FrameReplay(session.run_dir / "replay", 1_000_000, seed, self.env_steps)
        if self.env_steps:
            for name in ("online", "target", "optimizer"):
                getattr(self, f"_{name}").load_state_dict(saved[name])
        self._obs, _ = self._env.reset(seed=seed)

    def step(self) -> None:
        """One env step, and what is due after it."""
        epsilon = max(1 - (1 - FINAL_EPSILON) * self.env_steps / EXPLORATION, FINAL_EPSILON)
        if random.random() < epsilon:
            action = int(self._env.action_space.sample())
        else:
            action = int(self.q_values(self._obs[None]).argmax(1))
        next_obs, reward, terminated, truncated, _ = self._env.step(action)
        self._replay.add(self._obs[-1], action, reward, terminated)
        if truncated:
            self._replay.cut()
        self._obs = self._env.reset()[0] if terminated or truncated else next_obs
        step, self.env_steps = self.env_steps, self.env_steps + 1
        if step > LEARNING_STARTS:
            if step % TRAIN_EVERY == 0:
                self._update()
            if step % TARGET_EVERY == 0:
                self._target.load_state_dict(self._online.state_dict())

    def _update(self) -> None:
        obs, actions, rewards, next_obs, terminal = (torch.from_numpy(column) for column in self._replay.sample(32))
        with torch.no_grad():
            goal = rewards + 0.99 * self._target(next_obs).max(1).values * ~terminal
        loss = F.mse_loss(self._online(obs).gather(1, actions[:, None]).squeeze(1), goal)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        self.updates += 1

    @torch.no_grad()
    def q_values(self, obs: np.ndarray) -> torch.Tensor:
        """Q values [B, actions] of observations [B, 4, 84, 84]."""
        return self._online(torch.from_numpy(obs))

    def save(self) -> None:
        state: dict[str, Any] = {"env_steps": self.env_steps, "updates": self.updates}
        for name in ("online", "target", "optimizer"):
            state[name] = getattr(self, f"_{name}").state_dict()
        self._session.save_state(state)
        self._session.save_weights(self.env_steps, self._online.layers.state_dict(), LAYERS, self.q_values)
        self._session.tick(self.env_steps, self.updates, last=True)


def main() -> int:
    session = Session()
    torch.set_num_threads(1)
    training = Training(session)
    while not session.stop and training.env_steps < TOTAL:
        training.step()
        session.tick(training.env_steps, training.updates)
    training.save()
    return STOPPED if session.stop else DONE


if __name__ == "__main__":
    sys.exit(main())
