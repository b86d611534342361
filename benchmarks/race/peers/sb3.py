"""Stable-Baselines3's DQN with the Atari settings of RL Baselines3 Zoo (`hyperparams/dqn.yml`, atari).

The replay stores each observation once (`optimize_memory_usage`), which changes memory and not what is learned: 100,000
transitions take 2.8 GB instead of 5.6. The Zoo ends after 10 million env steps; the race stops earlier.
"""

from __future__ import annotations

import sys

import ale_py  # noqa: F401  (registers the games)
import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import VecFrameStack

from benchmarks.race.peers.session import DONE, STOPPED, Session

TOTAL = 10_000_000
LAYERS = {
    "conv1": "features_extractor.cnn.0",
    "conv2": "features_extractor.cnn.2",
    "conv3": "features_extractor.cnn.4",
    "hidden": "features_extractor.linear.0",
    "q": "q_net.0",
}
"""Names of an exported policy's layers, and SB3's."""


class Watch(BaseCallback):
    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session = session

    def _on_step(self) -> bool:
        self._session.tick(self.num_timesteps, self.model._n_updates)
        return not self._session.stop


def _q_values(model: DQN, obs: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return model.q_net(torch.from_numpy(obs))


def main() -> int:
    session = Session()
    torch.set_num_threads(1)
    envs = VecFrameStack(make_atari_env(session.env_id, n_envs=1, seed=session.seed), n_stack=4)
    state, replay = session.run_dir / "model.zip", session.run_dir / "replay.pkl"
    if state.exists():
        model = DQN.load(state, envs, device="cpu")
        model.load_replay_buffer(replay)
    else:
        model = DQN(
            "CnnPolicy",
            envs,
            buffer_size=100_000,
            learning_rate=1e-4,
            batch_size=32,
            learning_starts=100_000,
            target_update_interval=1_000,
            train_freq=4,
            gradient_steps=1,
            exploration_fraction=0.1,
            exploration_final_eps=0.01,
            optimize_memory_usage=True,
            replay_buffer_kwargs={"handle_timeout_termination": False},  # the two exclude each other there
            seed=session.seed,
            device="cpu",
        )
    model.learn(TOTAL - model.num_timesteps, callback=Watch(session), reset_num_timesteps=False)
    model.save_replay_buffer(replay)
    model.save(state)
    session.save_weights(model.num_timesteps, model.q_net.state_dict(), LAYERS, lambda obs: _q_values(model, obs))
    session.tick(model.num_timesteps, model._n_updates, last=True)
    return STOPPED if session.stop else DONE


if __name__ == "__main__":
    sys.exit(main())
