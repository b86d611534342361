"""Pong, the Atari game that is learned fastest: from -21 to nearly +21.

Source: the settings are ours, found by `python -m benchmarks.race`. Pong is learned by many small updates: batches of
32, one per 4 env steps, with the small network of Mnih et al. 2013. Few large batches, which learn Breakout fastest,
need three times as many env steps; see experiments/LOG.md.

Expected: a mean of 18 or more after a core-hour, some 900,000 env steps (a human scores 14.6, random play -20.7).
Measured: by the race, 30 games: 18.4 (95% interval 17.9 to 18.8) after a core-hour and 817,521 env steps with seed 1;
with seed 2 19.9 (19.3 to 20.3; 946,776 env steps) on a Zen 4 with bf16, and on the processor of seed 1, beside other
programs, 12.2 (10.9 to 13.5; 730,979) and 19.0 after 886,807.

    python -m experiments.pong
"""

from __future__ import annotations

from atari_dqn.cli.command import run_command
from atari_dqn.config.schema import TrainConfig
from atari_dqn.train import main

EXPECTED = "18 of 21 (measured, two seeds)"
TAKES = "a core-hour"
CONFIG = TrainConfig().replace(
    env_id="ALE/Pong-v5",
    network="small",
    num_workers=1,
    envs_per_worker=8,
    n_step=3,
    replay_capacity=2**18,
    replay_ratio=8.0,
    beta_values=(0.4,),
    beta_at=(0.0,),
    learning_starts=10_000,
    target_update_interval=1_000,
    epsilon_values=(1.0, 0.1, 0.01),
    epsilon_at=(0.0, 0.07, 0.14),
    total_env_steps=1_000_000,
    log_interval=5_000,
    eval_interval=100_000,
    eval_episodes=8,
    eval_epsilon=0.01,
)

if __name__ == "__main__":
    run_command(lambda: main(default=CONFIG, prog="python -m experiments.pong"))
