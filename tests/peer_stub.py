"""A contestant of `benchmarks.peers` that trains nothing: 4 env steps and an update a turn of its loop, as its third
argument bids: `count FILE` (writes how many env steps it has made), `break` (in its first turn), `noise`, `steady`."""

from __future__ import annotations

import multiprocessing
import sys
import time
from pathlib import Path

from benchmarks.peers.turns import Turns


def main() -> None:
    with Turns("atari-dqn") as turns:
        manner = sys.argv[2]
        if manner != "count":
            # A worker that never ends by itself.
            multiprocessing.get_context("fork").Process(target=time.sleep, args=(3600,)).start()
        iteration = 0
        while True:
            iteration += 1
            if manner == "count":
                Path(sys.argv[3]).write_text(str(4 * iteration))
            elif manner == "noise":
                print('{"ready": "no"}', flush=True)
            if manner == "break" and 4 * iteration > turns.work.learning_starts + 400:
                raise ValueError("the stub is broken")
            turns.tick(4 * iteration, iteration)


if __name__ == "__main__":
    main()
