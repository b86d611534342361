"""A search by Optuna that gives up trials that do badly: `python -m examples.with_optuna`.

`python -m atari_dqn.sweep` searches over games, seeds and machines; this is for a search of one's own.
"""

from __future__ import annotations

import optuna

import atari_dqn


def score(trial: optuna.Trial, total_env_steps: int) -> float:
    """The mean return of the last 100 games of a run with settings that the trial suggests."""
    started = f"{trial.study.trials[0].datetime_start:%Y%m%d-%H%M%S}"
    shown: list[float] = []

    def on_row(row: dict[str, float]) -> None:
        if "charts/episodic_return" in row:
            shown.append(row["charts/episodic_return"])
            trial.report(shown[-1], int(row["env_step"]))
            if trial.should_prune():
                raise optuna.TrialPruned

    atari_dqn.train(
        "CartPole-v1",
        run_dir=f"runs/optuna-{started}/{trial.number}",
        total_env_steps=total_env_steps,
        num_workers=2,
        learning_starts=500,
        learning_rate=trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
        target_update_interval=trial.suggest_int("target_update_interval", 10, 1_000, log=True),
        clip_rewards=False,
        on_row=on_row,
    )
    return shown[-1]


def main(trials: int = 10, total_env_steps: int = 10_000) -> optuna.Study:
    """Search, and print the best settings."""
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.MedianPruner(n_startup_trials=3))
    study.optimize(lambda trial: score(trial, total_env_steps), n_trials=trials)
    print(study.best_params, study.best_value)
    return study


if __name__ == "__main__":
    main()
