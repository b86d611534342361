"""Breakout as fast as possible, on one GPU and 16 CPU cores.

Source: the settings are ours, chosen for speed. Many envs, each with its own constant epsilon, since such a short run
has no time to explore first, constant beta and n-step 3 (all three as in Horgan et al. 2018); large batches, which cost
little on a GPU; the usual replay ratio; a target network that is copied every 250 updates of 512, which is every 16,000
env steps; and twice the usual learning rate for 16 times the usual batch.

Expected: a mean score of 400 (`nature` protocol) in about 15 minutes, where Ape-X with 8 workers has 77 after an hour.
The emulators limit the speed to about 25,000 env steps/s, so 22 million in 15 minutes, with 390 updates/s of 512.
Measured: not yet run.

    python -m experiments.breakout_fast
"""

from __future__ import annotations

from atari_dqn.cli.command import run_command
from atari_dqn.config.schema import TrainConfig
from atari_dqn.train import main

EXPECTED = "400 (not yet run)"
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
    run_command(lambda: main(default=CONFIG, prog="python -m experiments.breakout_fast"))
