"""Breakout in about an hour on a CPU, one core or two, without a GPU.

Source: the settings are ours, those of `train --preset cpu`, found by `python -m benchmarks.race`. An update costs as
much as dozens of env steps here, so few of them, from many environments and with a high learning rate, learn most from
a core-hour; the small network of Mnih et al. 2013 costs a third of the usual one. The high rate ends in a plateau, so
it falls at a million env steps. See experiments/LOG.md for what was tried.

Expected: a mean score above 80 after a core-hour, some 3 million env steps.
Measured: by the race, one seed, 30 games: 22.6 after 0.125 core-hours, 48.3 after 0.25, 72.3 after 0.5 and 101.0
(95% interval 78.2 to 127.6) after 1.

    python -m experiments.breakout_cpu
"""

from __future__ import annotations

from atari_dqn.cli.command import run_command
from atari_dqn.config.presets import cpu
from atari_dqn.train import main

EXPECTED = "above 80 (87 measured after 45 core-minutes, one seed)"
TAKES = "a core-hour; it goes on to 1.3"
CONFIG = cpu(cores=2, total=4_000_000).replace(
    env_id="ALE/Breakout-v5",
    checkpoint_interval=250_000,
    eval_interval=250_000,
)

if __name__ == "__main__":
    run_command(lambda: main(default=CONFIG, prog="python -m experiments.breakout_cpu"))
