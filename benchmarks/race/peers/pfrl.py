"""PFRL's DQN with the settings of its Atari reproduction, `examples/atari/reproduction/dqn/train_dqn.py` (c8cb332).

Of the reproductions it documents, DQN is the one that our networks can play; Rainbow's is categorical and noisy. The
settings are those of Mnih et al. 2015: centered RMSprop of 2.5e-4, gamma 0.99, batches of 32 every 4 env steps after
50,000, the sum of Huber losses, a target every 10,000 env steps, epsilon from 1 to 0.1 over a million, a replay of a
million. Its own agent, explorer, optimizer, network and wrappers are used, in the loop of its `train_agent`.

What differs: the replay keeps each frame once, on disk, with the same numbers (its own keeps it once, too, and about
1 KB of Python objects with it, and would take minutes to save), and the emulator is handed to the wrappers as in
`benchmarks.peers`, for they were written for an older gym.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pfrl
import torch
from pfrl.agents import DQN
from pfrl.explorers import LinearDecayEpsilonGreedy
from pfrl.initializers import init_chainer_default
from pfrl.optimizers import RMSpropEpsInsideSqrt
from pfrl.q_functions import DiscreteActionValueHead
from pfrl.replay_buffer import AbstractReplayBuffer
from pfrl.wrappers import atari_wrappers
from torch import nn

from benchmarks.peers.contestants.pfrl import Game, scaled
from benchmarks.race.peers.replay import FrameReplay
from benchmarks.race.peers.session import DONE, STOPPED, Session

TOTAL = 50_000_000
LAYERS = {
    "conv1": "0.layers.0",
    "conv2": "0.layers.1",
    "conv3": "0.layers.2",
    "hidden": "0.output",
    "q": "1",
}
"""Names of an exported policy's layers, and PFRL's."""


class Replay(AbstractReplayBuffer):
    """A `FrameReplay` as PFRL's agents use one."""

    capacity = 10**6

    def __init__(self, directory: Path, seed: int, added: int) -> None:
        self.frames = FrameReplay(directory, self.capacity, seed, added)

    def append(self, state: Any, action: int, reward: float, is_state_terminal: bool = False, **others: Any) -> None:
        self.frames.add(np.asarray(state)[-1], action, reward, is_state_terminal)

    def stop_current_episode(self, env_id: int = 0) -> None:
        self.frames.cut()

    def sample(self, n: int) -> list[list[dict[str, Any]]]:
        names = ("state", "action", "reward", "next_state", "is_state_terminal")
        rows = zip(*self.frames.sample(n), strict=True)
        return [[dict(zip(names, row, strict=True), next_action=None)] for row in rows]

    def __len__(self) -> int:
        return len(self.frames)

    def save(self, filename: str) -> None:
        """Nothing: it is on disk."""

    load = save


def make_env(env_id: str, seed: int) -> Any:
    """The environment of `make_atari(env_id, max_frames=None)` and `wrap_deepmind`."""
    env = atari_wrappers.MaxAndSkipEnv(atari_wrappers.NoopResetEnv(Game(env_id, seed), noop_max=30), skip=4)
    return atari_wrappers.wrap_deepmind(env, episode_life=True, clip_rewards=True)


def main() -> int:
    session = Session()
    torch.set_num_threads(1)
    saved = session.load_state() or {"t": 0, "optim_t": 0}
    seed = session.seed + saved["t"]
    pfrl.utils.set_random_seed(seed)
    env = make_env(session.env_id, seed)
    num_actions = env.action_space.n
    network = nn.Sequential(
        pfrl.nn.LargeAtariCNN(), init_chainer_default(nn.Linear(512, num_actions)), DiscreteActionValueHead()
    )
    agent = DQN(
        network,
        RMSpropEpsInsideSqrt(network.parameters(), lr=2.5e-4, alpha=0.95, momentum=0.0, eps=1e-2, centered=True),
        Replay(session.run_dir / "replay", seed, saved["t"]),
        gamma=0.99,
        explorer=LinearDecayEpsilonGreedy(1.0, 0.1, 10**6, lambda: np.random.randint(num_actions)),
        replay_start_size=5 * 10**4,
        target_update_interval=10**4,
        clip_delta=True,
        update_interval=4,
        batch_accumulator="sum",
        phi=scaled,
    )
    state: Path = session.run_dir / "agent"
    if saved["t"]:
        agent.load(str(state))
        agent.t, agent.optim_t = saved["t"], saved["optim_t"]
    obs = env.reset()
    while not session.stop and agent.t < TOTAL:
        obs, reward, done, _ = env.step(agent.act(obs))
        agent.observe(obs, reward, done, False)
        if done:
            obs = env.reset()
        session.tick(agent.t, agent.optim_t)
    agent.save(str(state))
    session.save_state({"t": agent.t, "optim_t": agent.optim_t})

    def q_values(observations: np.ndarray) -> torch.Tensor:
        with torch.no_grad():
            return network(agent.batch_states(list(observations), agent.device, agent.phi)).q_values

    session.save_weights(agent.t, network.state_dict(), LAYERS, q_values)
    session.tick(agent.t, agent.optim_t, last=True)
    return STOPPED if session.stop else DONE


if __name__ == "__main__":
    sys.exit(main())
