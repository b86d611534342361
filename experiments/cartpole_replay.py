"""CartPole-v1 with experience replay, all else as in `cartpole_no_replay`.

Source: the same note. 5,000 epochs, each 32 fresh steps into a uniform replay of 1,280 and one update of 128 from it:
a quarter of the steps for the same number of updates. Ours: the 32 are one of each of 32 envs.

Expected: 15 s instead of 3 minutes, and better play. Measured: not yet.

    python -m experiments.cartpole_replay
"""

from __future__ import annotations

from atari_dqn import cli, train
from experiments import cartpole_no_replay

EXPECTED = "as cartpole_no_replay, in 15 s, and better"
TAKES = "about 3 min on one core"
CONFIG = cartpole_no_replay.CONFIG.replace(
    replay="uniform",
    replay_capacity=1_280,
    replay_ratio=4.0,
    total_env_steps=160_160,
)

if __name__ == "__main__":
    cli.run_command(lambda: train.main(default=CONFIG, prog="python -m experiments.cartpole_replay"))
