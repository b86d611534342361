"""The time of a run: env steps flow in, seconds and env steps a second flow out."""

from __future__ import annotations

import time


class Clock:
    """Wall time of the run, its former parts included, and env steps a second since it was last asked."""

    def __init__(self) -> None:
        self.before = 0.0
        """seconds, of the run's former parts"""
        self._start: float | None = None

    def start(self, env_steps: int) -> None:
        self._start = self._asked = time.monotonic()
        self._env_steps = env_steps

    def elapsed(self) -> float:
        return self.before + (0.0 if self._start is None else time.monotonic() - self._start)

    def steps_per_second(self, env_steps: int) -> float:
        now = time.monotonic()
        rate = (env_steps - self._env_steps) / max(now - self._asked, 1e-9)
        self._env_steps, self._asked = env_steps, now
        return rate
