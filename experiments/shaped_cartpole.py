"""CartPole-v1 with scaled observations and a shaped reward: `experiments.shaped_cartpole:CartPoleShaped-v0`.

It is the environment of the experience replay note (see cartpole_no_replay.py). `info["raw_reward"]` holds CartPole's
own reward, which is the one that is scored. Every worker imports this file, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control import CartPoleEnv

SIZES = np.array((0.5, 1.0, 0.21, 0.5), dtype=np.float32)
"""Typical sizes of position (m), velocity (m/s), angle (rad; about where the pole has fallen) and angular velocity
(rad/s)."""
Observation = npt.NDArray[np.float32]


class Shaped(gym.Wrapper[Observation, Any, Any, Any]):
    """Observations divided by `SIZES`; rewards -20 for a fall, else -1 beyond 0.1 rad, else -2 beyond 0.3 m, else +1.

    The note lists the cases in this order but does not say which one counts if two apply: here it is the first.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, gym.spaces.Box)
        self.observation_space = gym.spaces.Box(space.low / SIZES, space.high / SIZES, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Reset CartPole; the observation is scaled."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation / SIZES, info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Step CartPole; observation scaled, reward shaped, CartPole's own reward in `info["raw_reward"]`."""
        observation, raw, terminated, truncated, info = self.env.step(action)
        shaped = shaped_reward(float(observation[0]), float(observation[2]), terminated)
        return observation / SIZES, shaped, terminated, truncated, {**info, "raw_reward": float(raw)}


def shaped_reward(position: float, angle: float, terminated: bool) -> float:
    """Reward of a step that led to `position` (m) and `angle` (rad)."""
    if terminated:
        return -20.0
    if abs(angle) > 0.1:
        return -1.0
    return -2.0 if abs(position) > 0.3 else 1.0


def make(render_mode: str | None = None) -> gym.Env[Observation, Any]:
    """The environment without its limit of 500 steps, which comes from the registration."""
    return Shaped(CartPoleEnv(render_mode=render_mode))


gym.register("CartPoleShaped-v0", entry_point="experiments.shaped_cartpole:make", max_episode_steps=500)
