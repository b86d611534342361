"""Stable-Baselines3's DQN with its own Atari preprocessing, vector env and replay: plain DQN, uniform replay."""

from __future__ import annotations

import ale_py  # noqa: F401  (registers the games)
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecFrameStack

from benchmarks.peers.turns import Turns


class Tick(BaseCallback):
    def __init__(self, turns: Turns) -> None:
        super().__init__()
        self._turns = turns

    def _on_step(self) -> bool:
        self._turns.tick(self.num_timesteps, self.model._n_updates)
        return True


def main() -> None:
    with Turns("stable-baselines3") as turns:
        work = turns.work
        torch.set_num_threads(work.torch_threads)
        envs = make_atari_env(work.game, n_envs=work.num_envs, seed=work.seed, vec_env_cls=SubprocVecEnv)
        model = DQN(
            "CnnPolicy",
            VecFrameStack(envs, n_stack=4),
            learning_rate=work.learning_rate,
            buffer_size=work.replay_capacity,
            learning_starts=work.learning_starts,
            batch_size=work.batch_size,
            gamma=work.gamma,
            train_freq=(1, "step"),  # of all envs
            gradient_steps=work.num_envs // work.env_steps_per_update,
            target_update_interval=work.target_update_interval * work.env_steps_per_update,  # its unit is env steps
            exploration_initial_eps=work.epsilon,
            exploration_final_eps=work.epsilon,
            optimize_memory_usage=True,
            replay_buffer_kwargs={"handle_timeout_termination": False},  # the two exclude each other there
            seed=work.seed,
            device="cpu",
        )
        model.learn(2**40, callback=Tick(turns))


if __name__ == "__main__":
    main()
