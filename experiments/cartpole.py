"""CartPole-v1 with every part of this package: workers, prioritized replay, dueling double Q, n-step returns.

Source: the settings are ours. Every 5,000 env steps, 20 games are played without exploration. The run ends when their
mean is 475, the score at which gymnasium considers the game solved, because a network that continues to learn may well
get worse again.

Expected: the run ends before its 120,000 env steps, within about 2 minutes on two cores, and 100 new games have a mean
of 475 or more. Measured: this is true of all five seeds. They end at env step 60,007 (median; 50,002 to 90,004), and
their means are 497 (median; 484 to 500).

    python -m experiments.cartpole
"""

from __future__ import annotations

from atari_dqn.cli.command import run_command
from atari_dqn.config.schema import TrainConfig
from atari_dqn.train import main

EXPECTED = "a mean of 475 or more over 100 games"
TAKES = "about 2 min on two cores"
CONFIG = TrainConfig().replace(
    env_id="CartPole-v1",
    num_workers=2,
    envs_per_worker=4,
    replay_capacity=2**15,
    n_step=3,
    clip_rewards=False,
    learning_rate=5e-4,
    batch_size=64,
    replay_ratio=16.0,
    learning_starts=1_000,
    target_update_interval=250,
    epsilon_values=(1.0, 0.02),
    epsilon_at=(0.0, 0.1),
    total_env_steps=120_000,
    checkpoint_interval=20_000,
    eval_interval=5_000,
    eval_episodes=20,
    eval_epsilon=0.0,
    stop_score=475.0,
    precision="fp32",
)

if __name__ == "__main__":
    run_command(lambda: main(default=CONFIG, prog="python -m experiments.cartpole"))
