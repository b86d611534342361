"""Settings with which `train` begins on an Atari game where neither a run nor a file gives any: `--preset`."""

import shutil
from collections.abc import Callable
from typing import Literal

from atari_dqn.config.schema import TrainConfig

Preset = Literal["auto", "cpu", "gpu", "paper"]
ABOUT = {
    "cpu": "a small network and many envs, which learn most from an hour of a CPU",
    "gpu": "many envs and large batches",
    "paper": "the settings of the papers, one update of 32 transitions per 4 env steps",
}
"""What each preset is, in words."""
ABOVE_RANDOM = {"ALE/Breakout-v5": 100_000, "ALE/Pong-v5": 450_000}
"""Env steps after which the training score of the preset cpu was above random play, in seed 1 of `benchmarks.race`."""


def cpu(cores: int, total: int) -> TrainConfig:
    """What learns most in a core-hour of a CPU by `python -m benchmarks.race`; see experiments/LOG.md.

    A second worker takes the envs from the learner's core; more than four would only take turns with it. 100,000
    env steps take about 120 seconds of a core, an evaluation of 4 games about 6 and a clip about 10.
    """
    workers = max(count for count in (1, 2, 4) if count <= max(1, cores))
    return TrainConfig().replace(
        network="small",
        num_workers=workers,
        envs_per_worker=32 // workers,
        n_step=3,
        replay_capacity=2**19,
        beta_values=(0.4,),
        beta_at=(0.0,),
        epsilon_values=(1.0, 0.1, 0.01),
        epsilon_at=(0.0, 0.1, 0.5),  # at 0, 200,000 and 1,000,000 env steps
        learning_rate_factors=(1.0, 0.4),
        learning_rate_at=(0.45, 0.55),
        schedule_env_steps=min(2_000_000, 10 * total),  # runs of less than 200,000 explore down to 0.1, too
        batch_size=64,
        replay_ratio=3.0,
        learning_rate=2.5e-4,
        target_update_interval=94,
        learning_starts=10_000,
        log_interval=2_000,
        eval_interval=100_000,
        eval_episodes=4,
        record_interval=500_000,
        total_env_steps=total,
    )


def gpu(cores: int, total: int) -> TrainConfig:
    """Many envs and large batches, as `experiments.breakout_fast`; not yet run on a GPU."""
    return TrainConfig().replace(
        num_workers=max(1, min(cores, 16)),
        envs_per_worker=8,
        n_step=3,
        replay_capacity=2**20,
        beta_values=(0.4,),
        beta_at=(0.0,),
        batch_size=512,
        replay_ratio=8.0,
        learning_rate=2e-4,
        target_update_interval=250,
        learning_starts=50_000,
        epsilon_ladder=True,
        log_interval=10_000,
        eval_interval=500_000,
        eval_episodes=8,
        record_interval=5_000_000,
        total_env_steps=total,
    )


def paper(cores: int, total: int) -> TrainConfig:
    """The defaults of `TrainConfig`: what the papers use, on any number of cores."""
    return TrainConfig().replace(total_env_steps=total)


PRESETS: dict[str, Callable[[int, int], TrainConfig]] = {"cpu": cpu, "gpu": gpu, "paper": paper}
"""Settings by name, for a number of cores and a run of so many env steps."""


def settings_of(name: str, cores: int, total: int, *, alone: bool) -> TrainConfig:
    """The settings of a preset, for a run that is `alone` or one of many, whose clips nobody would watch."""
    config = PRESETS[name](cores, total)
    return config if alone else config.replace(record_interval=0)


def auto(device: str) -> Preset:
    """The preset for this machine and a setting of `--device`."""
    return "gpu" if device != "cpu" and shutil.which("nvidia-smi") else "cpu"
