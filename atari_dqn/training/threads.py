"""The number of torch threads of a training on a CPU, chosen by the pace of its loop with one and with all.

Threads that share an update wait for each other. On idle cores that is worth it; on cores that other programs use, too,
they wait for one that has no core, and the loop may be ten times slower than with one thread.
"""

import math
import statistics
from collections.abc import Callable, Generator

import torch

BLOCK, LEAST, MOST = 8, 3, 5
"""Updates in a block of a trial, and least and largest number of blocks with each number of threads"""
CLEAR = 2.0
"""A pace as many times better ends a block and, after `LEAST` blocks, the trial"""
BETTER = 0.95
"""Share of the present time per update at which the other number of threads is worth a change"""
WINDOW = 100
"""Updates over which the pace is measured between trials"""
SLOWER = 1.5
"""A pace as many times worse than in the trial calls for another one"""
LOOK_SECONDS, REST = 600.0, 20.0
"""Longest time between trials; and the shortest, in units of the last one's time, so that they cost little"""


class ThreadChoice:
    """Alternates between one thread and all for a few dozen updates, then stays with the faster.

    It looks again when the pace drops, and from time to time. It depends on nothing but the times it is given.
    """

    def __init__(self, most: int, set_threads: Callable[[int], object] = torch.set_num_threads) -> None:
        self._seconds, self._updates = 0.0, 0
        self._course = self._choices(most, set_threads)
        self._enough = next(self._course)

    def took(self, seconds: float, updates: int) -> str:
        """Take the time of a turn of the loop that made `updates`. Returns a line for the user at a new choice."""
        self._seconds += seconds
        self._updates += updates
        most_updates, most_seconds, _ = self._enough
        if not self._updates or (self._updates < most_updates and self._seconds < most_seconds):
            return ""
        taken, self._seconds, self._updates = (self._seconds, self._updates), 0.0, 0
        self._enough = self._course.send(taken)
        return self._enough[-1]

    @staticmethod
    def _choices(
        most: int, set_threads: Callable[[int], object]
    ) -> Generator[tuple[int, float, str], tuple[float, int], None]:
        """Yields how many updates to time next, for how many seconds at most, and a line; is sent what was timed."""
        now, other, chosen = 1, most, 0
        while True:
            paces: dict[int, list[float]] = {now: [], other: []}
            spent, means = 0.0, [1.0, 1.0]
            while len(paces[now]) < MOST and (len(paces[now]) < LEAST or max(means) < CLEAR * min(means)):
                for threads, measured in paces.items():
                    set_threads(threads)
                    best = min((*paces[now], *paces[other]), default=math.inf)
                    seconds, updates = yield BLOCK, CLEAR * BLOCK * best, ""
                    measured.append(seconds / updates)
                    spent += seconds
                means = [statistics.fmean(measured[1:] or [1.0]) for measured in paces.values()]  # the first warms up
            if means[1] < BETTER * means[0]:
                now, other, means = other, now, means[::-1]
            set_threads(now)
            times = f"{1000 * means[0]:.3g} ms per update, {1000 * means[1]:.3g} with {other}"
            line = f"torch threads: {now} ({times})" if now != chosen else ""
            chosen, waited, pace = now, 0.0, means[0]
            while waited < REST * spent or (waited < LOOK_SECONDS and pace < SLOWER * means[0]):
                seconds, updates = yield WINDOW, SLOWER * WINDOW * means[0], line
                waited, pace, line = waited + seconds, seconds / updates, ""
