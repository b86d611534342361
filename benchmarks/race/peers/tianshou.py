"""Tianshou's DQN with the settings of its script `examples/atari/atari_dqn.py` (2.0.1), as its table runs Breakout.

That is: 10 envs in processes, one update of 32 per 10 env steps, n-step 3, double Q, Adam of 1e-4, gamma 0.99, a target
every 500 updates, epsilon from 1 to 0.05 over a million env steps, a replay of 100,000 that keeps each frame once. The
network reads pixels from 0 to 255 (`scale_obs` is 0), so its first layer is exported 255 times as large.

Its own algorithm, network, wrappers, vector env, replay and collector are used. What differs: the loop is that of its
trainer without the test games, the logging, and a search of the whole replay for NaN after each collection; and its
wrappers get uint8 for an abstract dtype that numpy no longer takes.
"""

from __future__ import annotations

import sys
from typing import Any

import ale_py
import gymnasium
import numpy as np
import torch
from tianshou.algorithm import DQN
from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env.atari import atari_wrapper
from tianshou.env.atari.atari_network import DQNet
from tianshou.utils.torch_utils import policy_within_training_step

from benchmarks.race.peers.session import DONE, STOPPED, Session

TOTAL, EXPLORATION, ENVS, BATCH = 10_000_000, 1_000_000, 10, 32
LAYERS = {"conv1": "0.0", "conv2": "0.2", "conv3": "0.4", "hidden": "1", "q": "3"}
"""Names of an exported policy's layers, and their places in the network."""


def main() -> int:
    session = Session()
    torch.set_num_threads(1)
    gymnasium.register_envs(ale_py)
    atari_wrapper.get_space_dtype = lambda space: space.dtype.type
    saved = session.load_state() or {"env_steps": 0, "updates": 0}
    env_steps, updates = saved["env_steps"], saved["updates"]
    seed = session.seed + env_steps
    one, envs, test_envs = atari_wrapper.make_atari_env(session.env_id, seed, ENVS, 1, scale=0, frame_stack=4)
    one.close()
    test_envs.close()
    np.random.seed(seed)
    torch.manual_seed(seed)
    network = DQNet(4, 84, 84, int(one.action_space.n))
    policy = DiscreteQLearningPolicy(
        model=network, action_space=one.action_space, eps_training=1.0, eps_inference=0.005
    )
    algorithm = DQN(
        policy=policy,
        optim=AdamOptimizerFactory(lr=1e-4),
        gamma=0.99,
        n_step_return_horizon=3,
        target_update_freq=500,
    )
    replay = VectorReplayBuffer(100_000, buffer_num=ENVS, ignore_obs_next=True, save_only_last_obs=True, stack_num=4)
    if "replay" in saved:
        algorithm.load_state_dict(saved["algorithm"])
        algorithm._iter, replay = updates, saved.pop("replay")
        replay.set_batch(replay._meta)  # the parts, one an env, are views of it again
        replay.done[replay.last_index] = replay.truncated[replay.last_index] = True  # new games follow
    collector: Any = Collector(algorithm, envs, replay, exploration_noise=True)
    collector.reset(reset_buffer=False)
    if not env_steps:
        collector.collect(n_step=BATCH * ENVS)
    with policy_within_training_step(policy):
        while not session.stop and env_steps < TOTAL:
            policy.set_eps_training(max(1 - 0.95 * env_steps / EXPLORATION, 0.05))
            env_steps += collector.collect(n_step=ENVS).n_collected_steps
            algorithm.update(replay, BATCH)
            updates += 1
            session.tick(env_steps, updates)
    envs.close()
    session.save_state(
        {"env_steps": env_steps, "updates": updates, "algorithm": algorithm.state_dict(), "replay": replay}
    )

    def q_values(obs: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return network(obs)[0]

    weights = network.net.state_dict()
    first = LAYERS["conv1"] + ".weight"
    session.save_weights(env_steps, weights | {first: 255 * weights[first]}, LAYERS, q_values)
    session.tick(env_steps, updates, last=True)
    return STOPPED if session.stop else DONE


if __name__ == "__main__":
    sys.exit(main())
