"""CartPole with the settings of the PyTorch Lightning article on DQN.

Source: the article by Byrne, to the letter. MLP of 128; Adam with rate 1e-2; mean squared error; one update of 16 per
env step from a uniform replay of 1,000, filled by 1,000 random steps; target network copied every 10 updates; gamma
0.99; epsilon linearly from 1 to 0.01 over the next 1,000 steps; no double Q, no dueling, rewards unchanged.

Different from the source: the environment is CartPole-v1, whose episodes last up to 500 steps, instead of CartPole-v0,
which stops at 200. The source also treats that stop as if the pole had fallen, and does not bootstrap there; here a
time limit bootstraps.

Expected: an episode reward of 200 after about 1,200 training steps, which is env step 2,200; about a minute on one
core. Measured: all five seeds reach it, after 1,388 training steps (median; 1,096 to 2,639; three of them within
1,500), and all of them reach games of 500. At the end, env step 20,000, 100 games have a mean of 434 (median; 183 to
500): the score oscillates and does not settle.

    python -m experiments.cartpole_lightning
"""

from __future__ import annotations

from atari_dqn.cli.command import run_command
from atari_dqn.config.schema import TrainConfig
from atari_dqn.train import main

EXPECTED = "an episode of 200 after about 1,200 training steps"
TAKES = "about 1 min on one core"
CONFIG = TrainConfig().replace(
    env_id="CartPole-v1",
    num_workers=1,
    envs_per_worker=1,
    replay="uniform",
    replay_capacity=1_000,
    gamma=0.99,
    clip_rewards=False,
    dueling=False,
    mlp_hidden=(128,),
    optimizer="adam",
    learning_rate=1e-2,
    batch_size=16,
    replay_ratio=16.0,
    learning_starts=1_000,
    target_update_interval=10,
    double_q=False,
    loss="mse",
    max_grad_norm=1e9,
    epsilon_values=(1.0, 0.01),
    epsilon_at=(0.05, 0.1),
    total_env_steps=20_000,
    precision="fp32",
)

if __name__ == "__main__":
    run_command(lambda: main(default=CONFIG, prog="python -m experiments.cartpole_lightning"))
