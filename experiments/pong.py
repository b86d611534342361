"""Pong, the Atari game that is learned fastest: from -21 to nearly +21.

Source: the settings are ours: those of `breakout`, with a replay that fits in any memory (1.9 GB) and exploration that
ends after a fifth of the run.

Expected: the first won game after 300,000 to 600,000 env steps, and a mean above 18 after 700,000 (a human scores 14.6,
random play -20.7). Measured: the first won game at env step 335,602; at the end, after 84 minutes on two cores, 20.0
(95% interval 19.7 to 20.3, 30 games), one seed; see experiments/results/.

    python -m experiments.pong
"""

from __future__ import annotations

from atari_dqn.cli.command import run_command
from atari_dqn.config.schema import TrainConfig
from atari_dqn.train import main

EXPECTED = "20 of 21 (measured, one seed)"
TAKES = "84 min on two cores"
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
