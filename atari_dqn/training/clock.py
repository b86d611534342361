"""Clock and intervals of a training: elapsed time, pace, and when something periodic is due."""

import time


class Clock:
    """Wall time of a run, its parts before a resume included, and its pace."""

    def __init__(self) -> None:
        self.before = 0.0
        """Seconds of the run before it was resumed"""
        self.start(0)

    def start(self, env_steps: int) -> None:
        self._start = self._asked = time.monotonic()
        self._env_steps = env_steps

    def elapsed(self) -> float:
        """Seconds of the run so far."""
        return self.before + time.monotonic() - self._start

    def steps_per_second(self, env_steps: int) -> float:
        """Env steps per second since the last call."""
        now = time.monotonic()
        rate = (env_steps - self._env_steps) / max(now - self._asked, 1e-9)
        self._env_steps, self._asked = env_steps, now
        return rate


class Every:
    """Tells when a counter, now at `count`, has reached or passed another multiple of an interval."""

    def __init__(self, count: int) -> None:
        self._before = count

    def passed(self, count: int, interval: int) -> bool:
        """Whether a multiple of `interval`, which may change, lies after the last call's count; never for 0."""
        before, self._before = self._before, count
        return bool(interval) and count // interval > before // interval
