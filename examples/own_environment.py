"""An environment of one's own, with arguments and a wrapper: `python -m examples.own_environment`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np

import atari_dqn


class Corridor(gym.Env[Any, Any]):
    """Walk right to the goal; every step costs 1."""

    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int = 10) -> None:
        self.length = length

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.place = max(0, self.place + (1 if action == 1 else -1))
        return self._observation(), -1.0, self.place == self.length, False, {}

    def _observation(self) -> Any:
        return np.array([self.place / self.length], np.float32)


def limited(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """`env` with games of at most 100 steps."""
    return gym.wrappers.TimeLimit(env, 100)


def main(total_env_steps: int = 20_000) -> atari_dqn.Run:
    """Train, and play the best way: as many steps as the corridor is long."""
    run = atari_dqn.train(
        Corridor,
        env_kwargs={"length": 6},
        wrapper=limited,
        run_dir="runs/corridor",
        total_env_steps=total_env_steps,
        num_workers=2,
        envs_per_worker=4,
        mlp_hidden=(32, 32),
        clip_rewards=False,
        learning_rate=1e-3,
        learning_starts=1_000,
        target_update_interval=100,
        replay_capacity=2**14,
    )
    print(run.evaluate(episodes=10, epsilon=0.0).summary())
    return run


if __name__ == "__main__":
    main()
