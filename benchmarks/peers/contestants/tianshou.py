"""Tianshou's DQN with double Q, its Nature network, prioritized replay, collector and shared-memory vector env.

The loop is that of its trainer without the logging: collect, then update. The replay is configured to save memory: it
stores only the newest frame of an observation, and no next observations. The preprocessing is gymnasium's: Tianshou's
own wrappers use an abstract numpy dtype that no longer exists, and with which each pixel took 8 bytes.
"""

from __future__ import annotations

import functools
from typing import Any

import ale_py
import gymnasium
import numpy as np
import torch
from gymnasium.wrappers import AtariPreprocessing, FrameStackObservation, TransformReward
from tianshou.algorithm import DQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, PrioritizedVectorReplayBuffer
from tianshou.env import ShmemVectorEnv
from tianshou.env.atari.atari_network import DQNet, ScaledObsInputActionReprNet
from tianshou.utils.torch_utils import policy_within_training_step

from benchmarks.peers.turns import Turns

TICKS = 4
"""Steps of the vector env per collection, as many as labml has, because each collection has a fixed cost."""


def make_env(game: str) -> Any:
    gymnasium.register_envs(ale_py)
    env = AtariPreprocessing(gymnasium.make(game), noop_max=30, terminal_on_life_loss=True)
    return FrameStackObservation(TransformReward(env, lambda reward: float(np.sign(float(reward)))), 4)


def main() -> None:
    with Turns("tianshou") as turns:
        work = turns.work
        torch.set_num_threads(work.torch_threads)
        torch.manual_seed(work.seed)
        envs = ShmemVectorEnv([functools.partial(make_env, work.game)] * work.num_envs)
        envs.seed(work.seed)
        action_space = envs.action_space[0]
        network = ScaledObsInputActionReprNet(DQNet(4, 84, 84, int(action_space.n)))
        policy = DiscreteQLearningPolicy(
            model=network,
            action_space=action_space,
            observation_space=envs.observation_space[0],
            eps_training=work.epsilon,
        )
        algorithm = DQN(
            policy=policy,
            optim=AdamOptimizerFactory(lr=work.learning_rate),
            gamma=work.gamma,
            target_update_freq=work.target_update_interval,
            is_double=True,
        )
        replay = PrioritizedVectorReplayBuffer(
            work.replay_capacity,
            buffer_num=work.num_envs,
            alpha=work.alpha,
            beta=work.beta,
            ignore_obs_next=True,
            save_only_last_obs=True,
            stack_num=4,
        )
        collector = Collector(algorithm, envs, replay, exploration_noise=True)
        collector.reset()
        env_steps, updates = 0, 0
        per_collection = TICKS * work.num_envs
        with policy_within_training_step(policy):
            while True:
                collector.collect(n_step=per_collection, random=env_steps < work.learning_starts)
                env_steps += per_collection
                if env_steps > work.learning_starts:
                    for _ in range(per_collection // work.env_steps_per_update):
                        algorithm.update(replay, work.batch_size)
                        updates += 1
                turns.tick(env_steps, updates)


if __name__ == "__main__":
    main()
