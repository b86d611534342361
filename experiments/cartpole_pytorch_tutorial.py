"""CartPole-v1 with the settings of the PyTorch tutorial on DQN.

Source: the tutorial by Paszke and Towers, to the letter. MLP of 128-128; AdamW with amsgrad and rate 1e-4; one update
of 128 per env step from a uniform replay of 10,000; Huber loss; gradient *values* clipped at 100; gamma 0.99; epsilon
0.05 + 0.85 exp(-step / 1,000); target network moved by 0.005 after every update; no double Q, no dueling, rewards
unchanged. It bootstraps at the time limit, as it should.

Different from the source: the tutorial ends after 600 episodes, this run after 150,000 env steps, which is the same if
their mean length is 250. The 128 steps before the first update are random.

Expected: an episode of 500 steps within 600 episodes; 10 minutes on two cores. Measured: 17 of the seeds 1 to 20 have
one by then; of the first five, three (after 308, 356 and 466 episodes; the others after 656 and 1,401). A plain loop
with the same settings has one in 15 of 20 (`python -m experiments.claims.plain_loop`); see experiments/results/. At the
end, each of the first five scores 500 in all of 100 games.

    python -m experiments.cartpole_pytorch_tutorial
"""

from __future__ import annotations

from atari_dqn.cli.command import run_command
from atari_dqn.config.schema import TrainConfig
from atari_dqn.train import main

EXPECTED = "an episode of 500 within 600 episodes"
TAKES = "10 min on two cores"
CONFIG = TrainConfig().replace(
    env_id="CartPole-v1",
    num_workers=1,
    envs_per_worker=1,
    replay="uniform",
    replay_capacity=10_000,
    gamma=0.99,
    clip_rewards=False,
    dueling=False,
    mlp_hidden=(128, 128),
    optimizer="adamw",
    learning_rate=1e-4,
    batch_size=128,
    replay_ratio=128.0,
    learning_starts=128,
    target_update_interval=1,
    target_tau=0.005,
    double_q=False,
    loss="huber",
    max_grad_value=100.0,
    max_grad_norm=1e9,
    epsilon_values=(0.9, 0.05),
    epsilon_at=(0.0, 1.0),
    epsilon_decay=1_000,
    total_env_steps=150_000,
    precision="fp32",
)

if __name__ == "__main__":
    run_command(lambda: main(default=CONFIG, prog="python -m experiments.cartpole_pytorch_tutorial"))
