"""Schedules: a value, or one for each env, as a function of env steps."""

import bisect
import dataclasses
import math

import numpy as np
import numpy.typing as npt

from atari_dqn.config.derived import Derived
from atari_dqn.config.schema import ExplorationConfig


@dataclasses.dataclass(frozen=True)
class Piecewise:
    """Straight lines between knots `(env step, value)`, constant before the first and after the last.

    Knots must be sorted by env step; one knot makes a constant.
    """

    knots: tuple[tuple[float, float], ...]

    def __call__(self, env_step: int) -> float:
        index = bisect.bisect_right([at for at, _ in self.knots], env_step)
        if index == 0:
            return self.knots[0][1]
        if index == len(self.knots):
            return self.knots[-1][1]
        (start, before), (end, after) = self.knots[index - 1], self.knots[index]
        return before + (after - before) * (env_step - start) / (end - start)


@dataclasses.dataclass(frozen=True)
class Exponential:
    """`last + (first - last) * exp(-env_step / decay)`, with `decay` in env steps."""

    first: float
    last: float
    decay: float

    def __call__(self, env_step: int) -> float:
        return self.last + (self.first - self.last) * math.exp(-env_step / self.decay)


@dataclasses.dataclass(frozen=True)
class Ladder:
    """A constant for each of at least 2 envs: 0.4^(1 + 7 i / (num_envs - 1)), from 0.4 down to 0.00066.

    See Horgan et al. 2018, section 4.1.
    """

    num_envs: int

    def __call__(self, env_step: int) -> npt.NDArray[np.float64]:
        rungs: npt.NDArray[np.float64] = 0.4 ** (1 + 7 * np.arange(self.num_envs) / (self.num_envs - 1))
        return rungs


def epsilon_schedule(exploration: ExplorationConfig, derived: Derived) -> Piecewise | Exponential | Ladder:
    """Epsilon as the settings have it, before any live edit."""
    if exploration.epsilon_ladder:
        return Ladder(derived.num_envs)
    if exploration.epsilon_decay:
        first, last = exploration.epsilon_values
        return Exponential(first, last, exploration.epsilon_decay)
    return Piecewise(derived.epsilon_knots)
