"""Breakout against the clock, on one GPU and 16 cores.

The mark to beat: a mean score of 400 (`nature` protocol) in about 15 minutes; Ape-X with 8 workers is at 77 after an
hour. Expected: the emulators' limit, about 25,000 env steps/s, so 22 million in those 15 minutes, with 390 updates/s of
512 beside them. Measured: not yet run.

Settings: ours, meant for speed. Many envs, each at an epsilon of its own instead of a schedule, since a run this short
has no time to explore first (Horgan et al. 2018, as are the constant beta and the steps of 3); large batches, which a
GPU takes nearly for nothing; the usual replay ratio; a target that follows every 250 updates of 512, which is every
16,000 env steps, and a learning rate twice the usual for 16 times the batch.

    python -m experiments.breakout_fast
"""

from __future__ import annotations

from atari_dqn import train
from atari_dqn.cli.command import run_command
from atari_dqn.config.schema import TrainConfig

EXPECTED = "400 in a quarter of an hour (not yet run)"
TAKES = "15 min on a GPU with 16 cores"
CONFIG = TrainConfig().replace(
    env_id="ALE/Breakout-v5",
    num_workers=16,
    envs_per_worker=8,
    n_step=3,
    replay_capacity=2**20,
    beta_values=(0.4,),
    beta_at=(0.0,),
    batch_size=512,
    replay_ratio=8.0,
    learning_rate=2e-4,
    learning_starts=50_000,
    target_update_interval=250,
    epsilon_ladder=True,
    total_env_steps=22_000_000,
    log_interval=50_000,
    checkpoint_interval=5_000_000,
    eval_interval=2_000_000,
    eval_episodes=16,
    eval_epsilon=0.01,
)

if __name__ == "__main__":
    run_command(lambda: train.main(default=CONFIG, prog="python -m experiments.breakout_fast"))
