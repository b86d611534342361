"""The result of one tick of several environments."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What one tick of N envs brought. The arrays are views of shared memory: valid until the next command."""

    frames: npt.NDArray[Any]
    """[N, *frame_shape] of the spec's dtype: the newest frame; at an episode's end its final one."""
    rewards: npt.NDArray[np.float64]
    """[N] what is learned from; not clipped"""
    raw_rewards: npt.NDArray[np.float64]
    """[N] what scores add up: `rewards`, but for an env that shapes them and tells the raw one, `info["raw_reward"]`"""
    terminated: npt.NDArray[np.bool_]
    """[N] the game is over"""
    truncated: npt.NDArray[np.bool_]
    """[N] the episode was cut by a time limit"""
    lives: npt.NDArray[np.int32]
    """[N] lives left; 0 where the env has none"""
    life_lost: npt.NDArray[np.bool_]
    """[N] lives fell, and the game goes on"""
    is_reset: npt.NDArray[np.bool_]
    """[N] this tick began an episode: its action was ignored, its reward is 0, and it is no env step"""

    @classmethod
    def empty(cls, num_envs: int, frame_shape: tuple[int, ...], frame_dtype: np.dtype[Any]) -> StepResult:
        """Zeros in memory of this process alone."""

        kinds = (np.float64, np.float64, np.bool_, np.bool_, np.int32, np.bool_, np.bool_)
        frames = np.zeros((num_envs, *frame_shape), frame_dtype)
        return cls(frames, *(np.zeros(num_envs, kind) for kind in kinds))  # type: ignore[arg-type]

    def of(self, envs: slice) -> StepResult:
        """The part of some envs, still views."""
        return StepResult(*(getattr(self, field.name)[envs] for field in dataclasses.fields(self)))
