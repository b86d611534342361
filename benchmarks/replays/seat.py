"""A contestant's process: requests flow in on stdin, what was measured flows out on stdout, a line of JSON each.

First it fills its replay until the ring has gone round, up to the middle of a game; what its resident memory grew by
is its size. A second replay of tiny frames shows what drawing costs without the gather. Then it answers
`{"kind", "seconds"}`, one turn at a time, until stdin ends.

    python -m benchmarks.replays.seat NAME CAPACITY THREADS
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.replays.contestants import CONTESTANTS, Contestant, version
from benchmarks.replays.stream import EPISODE, Stream, wrong

SIDE, TINY = 84, 8
"""Pixels along a frame's side, and of one whose gather costs nothing to speak of."""
BATCHES = (32, 256)
CHECKED = 2**15
"""Transitions that are drawn and compared with what was put in."""


class Seat:
    """Turns of one contestant; every kind is `(operations, seconds)` of at least so many seconds."""

    def __init__(self, kind: type[Contestant], capacity: int) -> None:
        self._kind, self._capacity = kind, capacity
        self._rng = np.random.default_rng(1)
        warm_up, _ = self._filled(TINY, 512)  # what the library takes once, whatever the size
        warm_up.update(warm_up.draw(BATCHES[0]), self._errors(BATCHES[0]))
        before = resident_bytes()
        self._replay, self._stream = self._filled(SIDE, capacity)
        self.bytes_per_transition = (resident_bytes() - before) / capacity
        self.share_wrong = self._share_wrong()
        tiny, _ = self._filled(TINY, capacity)
        self.kinds: dict[str, Callable[[float], tuple[int, float]]] = {"add": self._add}
        for size in BATCHES:
            self.kinds[f"draw and update {size}"] = self._drawing(self._replay, size)
            self.kinds[f"the same with tiny frames {size}"] = self._drawing(tiny, size)

    def _filled(self, side: int, capacity: int) -> tuple[Contestant, Stream]:
        replay = self._kind(capacity, side)
        stream = Stream(self._kind.num_envs, side, stack_last=self._kind.stack_last)
        steps = capacity // self._kind.num_envs
        for _ in range(steps + EPISODE - steps % EPISODE + EPISODE // 2):
            replay.add(stream.step())
        gc.collect()
        return replay, stream

    def _share_wrong(self) -> float:
        """Of transitions drawn that were never put in; every draw is an update too, so that priorities differ."""
        found = []
        for _ in range(CHECKED // BATCHES[-1]):
            batch = self._replay.draw(BATCHES[-1])
            stacks = self._replay.stacks(batch)
            found.append(wrong(*stacks, newest=self._stream.tick, stack_last=self._kind.stack_last))
            self._replay.update(batch, self._errors(BATCHES[-1]))
        return float(np.concatenate(found).mean())

    def _errors(self, size: int) -> np.ndarray:
        return self._rng.random(size, dtype=np.float32) + 0.01

    def _drawing(self, replay: Contestant, size: int) -> Callable[[float], tuple[int, float]]:
        errors = [self._errors(size) for _ in range(16)]

        def turn(seconds: float) -> tuple[int, float]:
            done, start = 0, time.perf_counter()
            while not done or time.perf_counter() - start < seconds:
                replay.update(replay.draw(size), errors[done % len(errors)])
                done += 1
            return done, time.perf_counter() - start

        return turn

    def _add(self, seconds: float) -> tuple[int, float]:
        """Making the steps takes time too, which does not count."""
        done, spent = 0, 0.0
        while spent < seconds:
            steps = [self._stream.step() for _ in range(16)]
            start = time.perf_counter()
            for step in steps:
                self._replay.add(step)
            spent += time.perf_counter() - start
            done += len(steps) * self._kind.num_envs
        return done, spent


def resident_bytes() -> int:
    """Of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(name: str, capacity: int, threads: int) -> None:
    """Speak JSON lines until stdin ends; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(line: Any) -> None:
        print(json.dumps(line), file=answers, flush=True)

    if name in ("ours", "torchrl"):  # the others compute in numpy, numba or C++, on one thread
        import torch

        torch.set_num_threads(threads)
    seat = Seat(CONTESTANTS[name], capacity)
    answer(
        {
            "kinds": list(seat.kinds),
            "version": version(name),
            "bytes_per_transition": seat.bytes_per_transition,
            "share_wrong": seat.share_wrong,
        }
    )
    for line in sys.stdin:
        request = json.loads(line)
        done, seconds = seat.kinds[request["kind"]](request["seconds"])
        answer({"done": done, "seconds": seconds})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
