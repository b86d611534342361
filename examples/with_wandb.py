"""Rows to Weights & Biases by `on_row`: `python -m examples.with_wandb`, offline unless WANDB_MODE says otherwise."""

from __future__ import annotations

import os

import wandb

import atari_dqn


def main(total_env_steps: int = 20_000) -> atari_dqn.Run:
    """Train with a W&B run beside the run."""
    os.environ.setdefault("WANDB_MODE", "offline")
    with wandb.init(project="atari_dqn", dir="runs") as shown:
        run = atari_dqn.train(
            "CartPole-v1",
            run_dir="runs/wandb-example",
            total_env_steps=total_env_steps,
            num_workers=2,
            learning_starts=500,
            on_row=lambda row: shown.log(row, step=int(row["env_step"])),
        )
        shown.config.update(run.config.to_dict())
    return run


if __name__ == "__main__":
    main()
