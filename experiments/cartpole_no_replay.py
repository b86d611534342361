"""CartPole-v1 without experience replay: each update learns from the last 128 steps, in order.

Source: a note on DQN with and without experience replay. Settings: MLP 32-32 with SiLU on inputs divided
by (0.5, 1.0, 0.21, 0.5); AdamW with amsgrad, 3e-4; Huber loss; gradient *values* clipped at 1; gamma 0.95; a shaped
reward (see shaped_cartpole.py; scores are the game's own); epsilon 1 to 0 in a straight line over the run; 5,000
epochs, each 128 fresh steps and one update with them; no double Q, no dueling. There is no target network: one that is
copied after every update is, at the next, the network itself. A time limit bootstraps. Ours: the 128 steps are about
four of each of 32 envs (the note's of one: `--envs-per-worker 1`). Where games end, batches overlap or leave some out,
5% of all steps; and the first 128 are not learned from.

Expected: a pole that stays up, after 3 minutes; `cartpole_replay` is the other half. Measured: five seeds end
after 44 s (median; 43 to 57). After 33 s (31 to 41) of it, all five have 20 games in a row with a mean of 475; then,
without exploration or a target network, four of them lose it: 100 games at the end have a mean of 191 (75 to 500).

    python -m experiments.cartpole_no_replay
"""

from __future__ import annotations

from atari_dqn import train
from atari_dqn.cli.command import run_command
from atari_dqn.config.schema import TrainConfig

EXPECTED = "a pole that stays up; then mostly lost again (191, 75 to 500)"
TAKES = "45 s on two cores"
CONFIG = TrainConfig().replace(
    env_id="experiments.shaped_cartpole:CartPoleShaped-v0",
    num_workers=1,
    envs_per_worker=32,
    replay="newest",
    replay_capacity=256,
    gamma=0.95,
    clip_rewards=False,
    dueling=False,
    mlp_hidden=(32, 32),
    activation="silu",
    optimizer="adamw",
    learning_rate=3e-4,
    batch_size=128,
    replay_ratio=1.0,
    learning_starts=128,
    target_update_interval=1,
    target_tau=1.0,
    double_q=False,
    loss="huber",
    max_grad_value=1.0,
    max_grad_norm=1e9,
    epsilon_values=(1.0, 0.0),
    epsilon_at=(0.0, 1.0),
    total_env_steps=640_160,  # an update comes beside the tick that follows its steps, the last one too
    precision="fp32",
)

if __name__ == "__main__":
    run_command(lambda: train.main(default=CONFIG, prog="python -m experiments.cartpole_no_replay"))
