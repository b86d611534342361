"""CartPole-v1 as the experience-replay note presents it, under the id `experiments.shaped_cartpole:CartPoleShaped-v0`.

Flows in: gymnasium's CartPole. Flows out: observations divided by typical sizes, a shaped reward to learn from, and the
raw one in `info["raw_reward"]`, so that scores stay the game's. Imported by every worker, so it imports no torch.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.classic_control import CartPoleEnv

SIZES = np.array((0.5, 1.0, 0.21, 0.5), dtype=np.float32)
"""Of position (m), velocity (m/s), angle (rad; about where the pole counts as fallen) and angular velocity (rad/s)."""
Observation = npt.NDArray[np.float32]


class Shaped(gym.Wrapper[Observation, Any, Any, Any]):
    """Observations over `SIZES`; rewards -20 for a fall, else -1 beyond 0.1 rad, else -2 beyond 0.3 m, else +1.

    The note names the cases in this order and not which of two that hold counts: here the first does.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space = env.observation_space
        assert isinstance(space, gym.spaces.Box)
        self.observation_space = gym.spaces.Box(space.low / SIZES, space.high / SIZES, dtype=np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """gymnasium's, scaled."""
        observation, info = self.env.reset(seed=seed, options=options)
        return observation / SIZES, info

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """gymnasium's, scaled and shaped; `info["raw_reward"]` is CartPole's own."""
        observation, raw, terminated, truncated, info = self.env.step(action)
        shaped = shaped_reward(float(observation[0]), float(observation[2]), terminated)
        return observation / SIZES, shaped, terminated, truncated, {**info, "raw_reward": float(raw)}


def shaped_reward(position: float, angle: float, terminated: bool) -> float:
    """Of the step that led to `position` (m) and `angle` (rad)."""
    if terminated:
        return -20.0
    if abs(angle) > 0.1:
        return -1.0
    return -2.0 if abs(position) > 0.3 else 1.0


def make(render_mode: str | None = None) -> gym.Env[Observation, Any]:
    """The env itself; its limit of 500 steps comes from the registration."""
    return Shaped(CartPoleEnv(render_mode=render_mode))


gym.register("CartPoleShaped-v0", entry_point="experiments.shaped_cartpole:make", max_episode_steps=500)
