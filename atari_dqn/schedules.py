"""Schedules: a value as a function of env steps. Flows in: knots `(env step, value)`; flows out: one float."""

from __future__ import annotations

import bisect
import dataclasses


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
