"""The result of one tick of several environments, as a block of arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What one tick of N environments returned. From a pool, the arrays are overwritten by its next command."""

    frames: npt.NDArray[Any]
    """Newest frames, [N, *frame_shape] in the spec's dtype; at an episode's end its final frame."""
    rewards: npt.NDArray[np.float64]
    """Rewards to learn from, not clipped, [N]."""
    raw_rewards: npt.NDArray[np.float64]
    """Rewards that scores sum up, [N]: `rewards`, or `info["raw_reward"]` of an environment that shapes its rewards."""
    terminated: npt.NDArray[np.bool_]
    """Whether the game is over, [N]."""
    truncated: npt.NDArray[np.bool_]
    """Whether a time limit cut the episode, [N]."""
    lives: npt.NDArray[np.int32]
    """Lives left in an Atari game, [N]; 0 in other environments."""
    life_lost: npt.NDArray[np.bool_]
    """Whether a life was lost while an Atari game continues, [N]."""
    is_reset: npt.NDArray[np.bool_]
    """Whether this tick started an episode, [N]: the action was ignored, the reward is 0, and the tick is not an
    env step."""

    @staticmethod
    def layout(
        num_envs: int, frame_shape: tuple[int, ...], frame_dtype: np.dtype[Any]
    ) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
        """Dtype and shape of each array, in the order of the fields."""
        scalars = (np.float64, np.float64, np.bool_, np.bool_, np.int32, np.bool_, np.bool_)
        return [(frame_dtype, (num_envs, *frame_shape)), *((np.dtype(kind), (num_envs,)) for kind in scalars)]

    @classmethod
    def empty(cls, num_envs: int, frame_shape: tuple[int, ...], frame_dtype: np.dtype[Any]) -> StepResult:
        """Zeros in this process's own memory."""
        return cls(*(np.zeros(shape, dtype) for dtype, shape in cls.layout(num_envs, frame_shape, frame_dtype)))

    def put_reset(self, env: int) -> None:
        """Set what the tick that starts an episode of `env` reports, besides its frame and lives."""
        for values in (self.rewards, self.raw_rewards, self.terminated, self.truncated, self.life_lost):
            values[env] = 0
        self.is_reset[env] = True

    def of(self, envs: slice) -> StepResult:
        """The part of some environments, as views."""
        return StepResult(*(getattr(self, field.name)[envs] for field in dataclasses.fields(self)))
