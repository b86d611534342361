"""The process of one contestant: reads requests from stdin and answers on stdout, in lines of JSON.

First it fills a replay until the ring has wrapped, up to the middle of a game; the growth of resident memory is its
size. A second replay of tiny frames shows the cost of drawing without gathering frames. Then it takes one turn for each
request `{"kind", "seconds"}`, until stdin is closed.

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
"""Sides of the frames in pixels; gathering the tiny ones costs almost nothing."""
BATCHES = (32, 256)
CHECKED = 2**15
"""Number of drawn transitions that are compared with what was stored."""


class Seat:
    """Turns of one contestant; each kind takes a least duration and returns its operations and seconds."""

    def __init__(self, kind: type[Contestant], capacity: int) -> None:
        self._kind, self._capacity = kind, capacity
        self._rng = np.random.default_rng(1)
        warm_up, _ = self._filled(TINY, 512)  # memory that the library takes once, for any capacity
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
        """Share of drawn transitions that were never stored; every draw is followed by an update of priorities."""
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
        """Store steps; the time to generate them does not count."""
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
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main(name: str, capacity: int, threads: int) -> None:
    """Answer requests until stdin is closed; the output of libraries goes to stderr."""
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
