"""Intervals: when something that happens every so many steps or updates is due."""

from __future__ import annotations


class Every:
    """Tells when a counter has reached or passed another multiple of an interval.

    The interval is an argument, since it may change while the run trains.
    """

    def __init__(self, count: int) -> None:
        """`count`: the counter's present value."""
        self._before = count

    def passed(self, count: int, interval: int) -> bool:
        """Whether a multiple of `interval` lies after the previous call's count, up to `count`; never for 0."""
        before, self._before = self._before, count
        return bool(interval) and count // interval > before // interval
