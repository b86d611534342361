"""PFRL's DoubleDQN with its prioritized replay, Atari wrappers and multi-process vector env.

The loop is that of its `train_agent_batch`. Frames are shared between observations (VectorFrameStack).
"""

from __future__ import annotations

import functools
from typing import Any

import gym
import numpy as np
import pfrl
import torch
from pfrl.agents import DoubleDQN
from pfrl.envs import MultiprocessVectorEnv
from pfrl.explorers import ConstantEpsilonGreedy
from pfrl.initializers import init_chainer_default
from pfrl.q_functions import DiscreteActionValueHead
from pfrl.replay_buffers import PrioritizedReplayBuffer
from pfrl.wrappers import VectorFrameStack, atari_wrappers
from torch import nn

from benchmarks.peers.contestants.old_gym import OldBreakout
from benchmarks.peers.turns import Turns


class Game(gym.Env):
    """The emulator as an environment for PFRL's wrappers."""

    def __init__(self, game: str, seed: int) -> None:
        self._old = OldBreakout(game)
        self._old.seed(seed)
        self.ale = self._old.unwrapped.ale
        self.action_space = gym.spaces.Discrete(int(self._old.unwrapped.action_space.n))
        self.observation_space = gym.spaces.Box(0, 255, (210, 160, 3), np.uint8)
        self.reset, self.step = self._old.reset, self._old.step

    def get_action_meanings(self) -> list[str]:
        return self._old.unwrapped.get_action_meanings()


def make_env(game: str, seed: int) -> Any:
    """The environment of `make_atari` and `wrap_deepmind`; the former would need gym's own Atari games."""
    env = pfrl.wrappers.ContinuingTimeLimit(Game(game, seed), max_episode_steps=30 * 60 * 60)
    env = atari_wrappers.MaxAndSkipEnv(atari_wrappers.NoopResetEnv(env, noop_max=30), skip=4)
    return atari_wrappers.wrap_deepmind(env, episode_life=True, clip_rewards=True, frame_stack=False)


def scaled(obs: Any) -> np.ndarray:
    return np.asarray(obs, dtype=np.float32) / 255


def main() -> None:
    with Turns("pfrl") as turns:
        work = turns.work
        torch.set_num_threads(work.torch_threads)
        pfrl.utils.set_random_seed(work.seed)
        makers = [functools.partial(make_env, work.game, work.seed + index) for index in range(work.num_envs)]
        env = VectorFrameStack(MultiprocessVectorEnv(makers), 4)
        num_actions = env.action_space.n
        network = nn.Sequential(
            pfrl.nn.LargeAtariCNN(), init_chainer_default(nn.Linear(512, num_actions)), DiscreteActionValueHead()
        )
        agent = DoubleDQN(
            network,
            torch.optim.Adam(network.parameters(), lr=work.learning_rate),
            PrioritizedReplayBuffer(work.replay_capacity, work.alpha, work.beta),
            gamma=work.gamma,
            explorer=ConstantEpsilonGreedy(work.epsilon, lambda: np.random.randint(num_actions)),
            replay_start_size=work.learning_starts,
            minibatch_size=work.batch_size,
            update_interval=work.env_steps_per_update,
            target_update_interval=work.target_update_interval * work.env_steps_per_update,  # its unit is env steps
            phi=scaled,
        )
        obs = env.reset()
        while True:
            obs, rewards, dones, infos = env.step(agent.batch_act(obs))
            resets = np.array([info.get("needs_reset", False) for info in infos])
            agent.batch_observe(obs, rewards, dones, resets)
            obs = env.reset(~np.logical_or(resets, dones))
            turns.tick(agent.t, agent.optim_t)


if __name__ == "__main__":
    main()
