"""Breakout with the settings of labml's annotated DQN experiment, in our environment.

Source: labml_nn/rl/dqn/experiment.py. 1,000,000 iterations, each of 8 workers x 4 env steps, then 8 updates of 32.
Replay of 2^14, alpha 0.6, beta from 0.4 to 1; epsilon 1, 0.1 at iteration 25,000, 0.01 at half of the run; target
network copied every 250 iterations; Adam with rate 1e-4, adjustable during the run; gradient norm limited to 0.5;
dueling double network with 512 units before the two streams. The unit here is the env step, 32 to an iteration.

Different from the source, because the source is wrong there: a lost life ends the *game* in it (so nothing after the
first life is ever played, and the score is that of one life), the last two frames are maximized after resizing, rewards
are not clipped (`--no-clip-rewards` restores that), and every worker starts alike, without no-ops.

Different for other reasons: updates are spread over the steps, one per 4, instead of 8 after 32; convolutions are in
bf16 where the hardware supports it (`--precision fp32` is the source's); and until the first update, at env step 16,384
when the replay is full, play is entirely random, where the source's epsilon has fallen to 0.98 by then.

Expected: 32 million env steps in 42 hours on two cores; the source publishes no score. Since whole games are played
instead of single lives, a replay of 2^14 holds only the last 18 minutes of play: the score should be lower than that of
`experiments.breakout`. Measured: the speed only, 214 env steps/s on two cores, where labml's own code makes 85 (`python
-m benchmarks.peers`).

    python -m experiments.breakout_labml
"""

from __future__ import annotations

from atari_dqn.cli.command import run_command
from atari_dqn.config.schema import TrainConfig
from atari_dqn.train import main

EXPECTED = "unknown: the source publishes no score"
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
    run_command(lambda: main(default=CONFIG, prog="python -m experiments.breakout_labml"))
