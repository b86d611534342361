"""CartPole-v1 with the whole machine: workers, prioritized replay, dueling double Q, n-step returns.

Settings: ours. Expected: some network of the run has a mean of 475 or more over 100 fresh evaluation games; the last
one need not (one 60,000-step run ended below 475: the policy still swings).

    python -m experiments.cartpole
"""

from __future__ import annotations

from atari_dqn import cli, train
from atari_dqn.config import TrainConfig

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
    epsilon_at=(0.0, 0.2),
    total_env_steps=60_000,
    checkpoint_interval=20_000,
    precision="fp32",
)

if __name__ == "__main__":
    cli.run_command(lambda: train.main(default=CONFIG, prog="python -m experiments.cartpole"))
