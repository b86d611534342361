"""Breakout with the settings of labml's annotated DQN experiment, through our environment.

Source: labml_nn/rl/dqn/experiment.py: 1,000,000 iterations of 8 workers x 4 steps, then 8 updates of 32. Replay 2^14,
alpha 0.6, beta 0.4 to 1; epsilon 1, 0.1 at iteration 25,000, 0.01 at half the run; target copied every 250 iterations;
Adam, 1e-4, live; gradient norm 0.5; dueling double network, 512 units before the two streams. The updates are spread
over the steps, one per 4, instead of 8 after 32; the unit here is the env step: 32 to an iteration.

Done otherwise, because it is unsound there: a lost life ends the *game* (nothing beyond the first life is ever played,
and the score is one life's), the last two frames are maximised after resizing, rewards are not clipped
(`--no-clip-rewards` has that back), every worker starts alike without no-ops. For other reasons: convolutions are in
bf16 where the hardware has it (`--precision fp32` is the source's), and play before the first update, at env step
16,384 when the replay is full, is wholly random, where the source's epsilon has come down to 0.98 by then.

Expected: the source publishes no score. By games rather than lives, a replay of 2^14 holds 18 minutes of play and
forgets the rest: less than `experiments.breakout`. Measured: the speed alone, 214 env steps/s on two cores
(`python -m benchmarks.peers`, where labml's own code does 85).

    python -m experiments.breakout_labml
"""

from __future__ import annotations

from atari_dqn import train
from atari_dqn.cli.command import run_command
from atari_dqn.config.schema import TrainConfig

EXPECTED = "labml's settings to the letter; the source publishes no score"
TAKES = "42 h on two cores"
CONFIG = TrainConfig().replace(
    env_id="ALE/Breakout-v5",
    num_workers=8,
    envs_per_worker=1,
    replay_capacity=2**14,
    alpha=0.6,
    beta_values=(0.4, 1.0),
    beta_at=(0.0, 1.0),
    learning_rate=1e-4,
    batch_size=32,
    replay_ratio=8.0,
    learning_starts=2**14,
    target_update_interval=2_000,
    max_grad_norm=0.5,
    epsilon_values=(1.0, 0.1, 0.01),
    epsilon_at=(0.0, 0.025, 0.5),
    total_env_steps=32_000_000,
    log_interval=10_000,
    eval_interval=1_000_000,
)

if __name__ == "__main__":
    run_command(lambda: train.main(default=CONFIG, prog="python -m experiments.breakout_labml"))
