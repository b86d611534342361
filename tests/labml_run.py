"""A run as labml's own client reports it, for the tests of the dashboard: made-up curves, one live learning rate.

Takes the server's URL (with /api/v1) and a directory; prints `run UUID`, then `learning_rate VALUE` for each new value,
and ends when its standard input does. Its HOME must be a directory of the test's: labml writes to `~/.labml`.
"""

from __future__ import annotations

import math
import os
import select
import sys

from labml import experiment, lab, tracker
from labml.internal.configs.dynamic_hyperparam import FloatDynamicHyperParam


def main(url: str, directory: str) -> None:
    lab.configure({"path": directory, "experiments_path": directory, "app_url": url, "app_open_browser": False})
    experiment.create(name="made up", uuid=f"{os.getpid():032x}", writers={"app"})
    rate = FloatDynamicHyperParam(1e-4, range_=(0.0, 1e-3))
    experiment.configs({"learning_rate": rate, "batch_size": 32})
    last = None
    with experiment.start():
        print("run", experiment.get_uuid(), flush=True)
        for step in range(1, 1_000_000):
            if select.select([sys.stdin], [], [], 0.1)[0]:
                break
            if rate() != last:
                last = rate()
                print("learning_rate", last, flush=True)
            tracker.save(
                step * 100,
                {"losses.td_loss": math.exp(-step / 50) + 0.02 * math.sin(step), "charts.episodic_return": step**0.5},
            )
    # labml would wait for a server that may have ended.
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
