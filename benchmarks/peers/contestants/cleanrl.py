"""Single-file DQN in the style of CleanRL, written for this benchmark.

One env in the learner's own process, a uniform replay that stores each observation once, plain fp32 torch. It has
neither CleanRL's vector env of one env nor its logging, so it is faster than the original.
"""

from __future__ import annotations

import random
from typing import Any

import ale_py
import gymnasium
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation
from torch import nn

from benchmarks.peers.turns import Turns


class Replay:
    """Uniform replay of observations [capacity, *shape] uint8, in which the next row is the next observation.

    After the end of an episode that is the first observation of the next one, as in CleanRL's memory-saving replay: a
    terminal does not bootstrap from it.
    """

    def __init__(self, capacity: int, shape: tuple[int, ...], rng: np.random.Generator) -> None:
        self.obs = np.zeros((capacity, *shape), np.uint8)
        self.actions = np.zeros(capacity, np.int64)
        self.rewards = np.zeros(capacity, np.float32)
        self.terminal = np.zeros(capacity, np.float32)
        self._added, self._capacity, self._rng = 0, capacity, rng

    def add(self, obs: np.ndarray, action: int, reward: float, next_obs: np.ndarray, terminal: bool) -> None:
        row = self._added % self._capacity
        self.obs[row], self.obs[(row + 1) % self._capacity] = obs, next_obs
        self.actions[row], self.rewards[row], self.terminal[row] = action, reward, terminal
        self._added += 1

    def sample(self, batch_size: int) -> tuple[torch.Tensor, ...]:
        """Observations, actions, rewards, next observations and terminals of `batch_size` transitions."""
        if self._added >= self._capacity:  # the next observation of the newest row has replaced the oldest row
            rows = (self._rng.integers(1, self._capacity, batch_size) + self._added) % self._capacity
        else:
            rows = self._rng.integers(self._added, size=batch_size)
        following = (rows + 1) % self._capacity
        columns = (self.obs[rows], self.actions[rows], self.rewards[rows], self.obs[following], self.terminal[rows])
        return tuple(torch.from_numpy(column) for column in columns)


class QNetwork(nn.Module):
    """The network of Mnih et al. 2015."""

    def __init__(self, num_actions: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(4, 32, 8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, 4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(3136, 512),
            nn.ReLU(),
            nn.Linear(512, num_actions),
        )

    def forward(self, obs: torch.Tensor) -> Any:
        return self.layers(obs / 255.0)


def main() -> None:
    with Turns("torch") as turns:
        work = turns.work
        torch.set_num_threads(work.torch_threads)
        torch.manual_seed(work.seed)
        random.seed(work.seed)
        gymnasium.register_envs(ale_py)
        env: Any = FrameStackObservation(
            AtariPreprocessing(gymnasium.make(work.game), noop_max=30, terminal_on_life_loss=True), 4
        )
        num_actions = int(env.action_space.n)
        online, target = QNetwork(num_actions), QNetwork(num_actions)
        target.load_state_dict(online.state_dict())
        optimizer = torch.optim.Adam(online.parameters(), lr=work.learning_rate)
        replay = Replay(work.replay_capacity, env.observation_space.shape, np.random.default_rng(work.seed))
        updates, env_steps = 0, 0
        obs, _ = env.reset(seed=work.seed)
        while True:
            if env_steps < work.learning_starts or random.random() < work.epsilon:
                action = random.randrange(num_actions)
            else:
                action = int(online(torch.from_numpy(obs[None])).argmax(dim=1).item())
            next_obs, reward, terminated, truncated, _ = env.step(action)
            replay.add(obs, action, float(np.sign(reward)), next_obs, terminated)
            obs = env.reset()[0] if terminated or truncated else next_obs
            env_steps += 1
            if env_steps >= work.learning_starts and env_steps % work.env_steps_per_update == 0:
                drawn_obs, actions, rewards, drawn_next, terminal = replay.sample(work.batch_size)
                with torch.no_grad():
                    best = target(drawn_next).max(dim=1).values
                    goal = rewards + work.gamma * best * (1 - terminal)
                q = online(drawn_obs).gather(1, actions[:, None]).squeeze(1)
                loss = F.mse_loss(goal, q)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                updates += 1
                if updates % work.target_update_interval == 0:
                    target.load_state_dict(online.state_dict())
            turns.tick(env_steps, updates)


if __name__ == "__main__":
    main()
