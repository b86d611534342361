"""The Atari 100k benchmark: 100,000 env steps (two hours of play) of Breakout, or of any game by `--env-id`.

Source: the benchmark is that of Kaiser et al. 2020. The settings are those of DrQ(eps) in Agarwal et al. 2021
(dopamine, labs/atari_100k/configs/DrQ_eps.gin), which follows the "efficient DQN" of Yarats et al. 2021 and van Hasselt
et al. 2019: one update of 32 transitions per env step from step 1,600, n-step 10, a uniform replay that holds the whole
run, dueling double network, target network copied after every update, Adam with rate 1e-4 and epsilon 1.5e-4,
exploration from 1 to 0.01 within 5,000 steps; one env, a lost life is terminal, no sticky actions. The score is that of
the run's last evaluation: 100 games at epsilon 0.001.

Different from the source: DrQ's random shifts of the image are missing, since this package does not have them.

Expected: less than the scores of DrQ(eps) for that reason; Breakout between 2 and 16. Published human-normalized
scores, median (mean) of 26 games: DER 0.19 (0.35), DrQ(eps) 0.31 (0.46), SPR 0.40 (0.62), all from the notebook of
Agarwal et al. 2021 (google-research/rliable). Published scores in Breakout, where random play scores 1.7 and a human
30.5: SimPLe 16.4 (Kaiser et al. 2020), DER 1.9 (van Hasselt et al. 2019).

Measured: one seed of each game, an hour each on two cores. Breakout 6.6 (95% interval 6.1 to 7.1, 100 games), Pong
-16.2 (-17.3 to -14.9; random play -20.7, a human 14.6); see experiments/results/.

    python -m experiments.atari100k --env-id pong
"""

from __future__ import annotations

from atari_dqn.cli.command import run_command
from atari_dqn.config.schema import TrainConfig
from atari_dqn.train import main

EXPECTED = "Breakout 6.6, Pong -16 (measured, one seed each)"
TAKES = "an hour on two cores"
CONFIG = TrainConfig().replace(
    env_id="ALE/Breakout-v5",
    num_workers=1,
    envs_per_worker=1,
    replay="uniform",
    replay_capacity=2**17,
    n_step=10,
    head="two_stream",
    learning_rate=1e-4,
    adam_epsilon=1.5e-4,
    batch_size=32,
    replay_ratio=32.0,
    learning_starts=1_600,
    target_update_interval=1,
    epsilon_values=(1.0, 0.01),
    epsilon_at=(0.016, 0.066),
    total_env_steps=100_000,
    checkpoint_interval=25_000,
    eval_interval=100_000,
    eval_episodes=100,
    eval_epsilon=0.001,
)

if __name__ == "__main__":
    run_command(lambda: main(default=CONFIG, prog="python -m experiments.atari100k"))
