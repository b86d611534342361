"""Breakout in about an hour on a CPU, one core or two, without a GPU.

Source: the settings are ours, found by `python -m benchmarks.race`. An update costs as much as dozens of env steps
here, so few of them, from many environments and with a high learning rate, learn most from a core-hour; that is
`train --preset cpu`. Half the channels of Mnih et al. 2015 cost about as much as the preset's network and learn more of
Breakout, though less of Pong. A high rate ends in a plateau, so it falls from 900,000 env steps on, and further than
the preset's. See experiments/LOG.md for what was tried.

Expected: a mean score near 85 after a core-hour, some 2.3 million env steps, and near 100 after 1.5.
Measured: by the race on a Zen 4 with bf16, 30 games, each beside another training: 81.6 (95% interval 69.9 to 95.6)
and 88.7 (78.0 to 101.2) after a core-hour, seeds 1 and 2; 99.4 (84.8 to 116.5) and 119.5 (101.8 to 138.5) after 1.5,
with 3.5 million env steps; 92.2 (73.9 to 113.7) and 163.4 (142.4 to 185.2) at the end, 4 million and 1.7 core-hours.

    python -m experiments.breakout_cpu
"""

from __future__ import annotations

from atari_dqn.cli.command import run_command
from atari_dqn.config.presets import cpu
from atari_dqn.train import main

EXPECTED = "near 85 after a core-hour (82 and 89 measured, two seeds), near 100 after 1.5 (99 and 119)"
TAKES = "1.7 core-hours"
CONFIG = cpu(cores=2, total=4_000_000).replace(
    env_id="ALE/Breakout-v5",
    network="narrow",
    learning_rate_factors=(1.0, 0.4, 0.16),
    learning_rate_at=(0.45, 0.55, 1.0),  # at 900,000, 1,100,000 and 2,000,000 env steps
    checkpoint_interval=250_000,
    eval_interval=250_000,
)

if __name__ == "__main__":
    run_command(lambda: main(default=CONFIG, prog="python -m experiments.breakout_cpu"))
