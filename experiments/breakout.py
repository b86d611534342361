"""Breakout to a score near 400, on one GPU or overnight on a good CPU.

Source: the settings are ours. They are the defaults (prioritized replay, dueling double network, one update of 32
transitions per 4 env steps) with n-step 3, a replay of a million transitions (7.4 GB) and beta constant at 0.4.

Expected: 350 to 400 under the `nature` protocol after 10 million env steps (40 million frames), in 13 hours on two
cores. There CleanRL's DQN has 367 +- 40 and SB3-Zoo's 358; the DQN of Mnih et al. 2015 has 401 after 200 million
frames.

Measured: not yet run. Shorter experiments: `breakout_cpu` (82 and 89 in an hour of one core) and `breakout_fast` (for a
GPU with 16 cores).

    python -m experiments.breakout
"""

from __future__ import annotations

from atari_dqn.cli.command import run_command
from atari_dqn.config.schema import TrainConfig
from atari_dqn.train import main

EXPECTED = "350 to 400 (not yet run)"
TAKES = "13 h on two cores; unknown on a GPU"
CONFIG = TrainConfig().replace(
    env_id="ALE/Breakout-v5",
    num_workers=8,
    envs_per_worker=2,
    n_step=3,
    replay_capacity=2**20,
    beta_values=(0.4,),
    beta_at=(0.0,),
    learning_starts=50_000,
    epsilon_values=(1.0, 0.1, 0.01),
    epsilon_at=(0.0, 0.025, 0.25),
    total_env_steps=10_000_000,
    log_interval=10_000,
    eval_interval=500_000,
    eval_episodes=16,
    eval_epsilon=0.01,
)

if __name__ == "__main__":
    run_command(lambda: main(default=CONFIG, prog="python -m experiments.breakout"))
