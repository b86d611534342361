"""Schedules: a value as a function of env steps. Flow in: knots `(env step, value)`, or a number of envs; flow out: one
float, or one per env.
"""

from __future__ import annotations

import bisect
import dataclasses
import math

import numpy as np
import numpy.typing as npt


@dataclasses.dataclass(frozen=True)
class Piecewise:
    """Straight lines between knots, constant before the first and after the last. Unit: env steps.

    One knot makes a constant. Knots must be sorted by env step.
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
    """`last + (first - last) * exp(-env_step / decay)`. Unit of `decay`: env steps."""

    first: float
    last: float
    decay: float

    def __call__(self, env_step: int) -> float:
        return self.last + (self.first - self.last) * math.exp(-env_step / self.decay)


@dataclasses.dataclass(frozen=True)
class Ladder:
    """A value of its own for each of `num_envs` envs (2 at least), the same at every env step.

    Env i's is 0.4^(1 + 7 i / (num_envs - 1)), from 0.4 down to 0.00066 (Horgan et al. 2018, section 4.1).
    """

    num_envs: int

    def __call__(self, env_step: int) -> npt.NDArray[np.float64]:
        rungs: npt.NDArray[np.float64] = 0.4 ** (1 + 7 * np.arange(self.num_envs) / (self.num_envs - 1))
        return rungs
