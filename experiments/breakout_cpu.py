"""Breakout in about an hour on two CPU cores, without a GPU.

Source: the settings are ours, chosen for short wall clock time. An update costs as much as 40 env steps here, so each
update gets twice the usual amount of new play (replay ratio 4), n-step 3 returns, and exploration that ends early.
Everything else is the default.

Expected: about 40 after 1.6 million env steps. Measured: 39.1 (95% interval 33.3 to 45.3, 30 games) after 79 minutes,
one seed; see experiments/results/.

    python -m experiments.breakout_cpu
"""

from __future__ import annotations

from atari_dqn import train
from atari_dqn.cli.command import run_command
from atari_dqn.config.schema import TrainConfig

EXPECTED = "39 (measured, one seed)"
TAKES = "79 min on two cores"
CONFIG = TrainConfig().replace(
    env_id="ALE/Breakout-v5",
    num_workers=2,
    envs_per_worker=4,
    n_step=3,
    replay_capacity=2**18,
    replay_ratio=4.0,
    learning_starts=10_000,
    epsilon_values=(1.0, 0.1, 0.01),
    epsilon_at=(0.0, 0.05, 0.25),
    total_env_steps=1_600_000,
    log_interval=2_000,
    checkpoint_interval=100_000,
    eval_interval=200_000,
    eval_episodes=8,
    eval_epsilon=0.01,
)

if __name__ == "__main__":
    run_command(lambda: train.main(default=CONFIG, prog="python -m experiments.breakout_cpu"))
