"""Contestants of the race: named settings of this package's trainer, as flags, and other people's trainers."""

from __future__ import annotations

import dataclasses
from typing import Any

Settings = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Contestant:
    """One way to train."""

    about: str
    """What it is, for the report."""
    settings: Settings = dataclasses.field(default_factory=dict)
    """Settings of `atari_dqn.train` by flat name, where they differ from its defaults"""
    peer: str = ""
    """Module in `benchmarks.race.peers` that trains in an environment of its own; empty for this package's trainer"""


HARNESS: Settings = {
    "log_interval": 2_000,
    "checkpoint_interval": 2**40,
    "checkpoint_minutes": 10.0,
    "eval_interval": 0,
    "device": "cpu",
}
"""Settings that belong to the race: no evaluation within the training, and few checkpoints, for both cost CPU time."""


def flags(settings: Settings) -> list[str]:
    """`{"n_step": 3, "double_q": False}` as `--n-step 3 --no-double-q`."""
    words: list[str] = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, tuple):
            words += [f"--{flag}", *map(str, value)]
        else:
            words += [f"--{flag}", str(value)]
    return words


def epsilon(total: int, *knots: tuple[int, float]) -> Settings:
    """The schedule through `knots` (env step, epsilon) of a run of `total` env steps."""
    return {
        "total_env_steps": total,
        "epsilon_values": tuple(value for _, value in knots),
        "epsilon_at": tuple(step / total for step, _ in knots),
    }


BREAKOUT_CPU: Settings = {
    "num_workers": 2,
    "envs_per_worker": 4,
    "n_step": 3,
    "replay_capacity": 2**18,
    "replay_ratio": 4.0,
    "learning_starts": 10_000,
    **epsilon(1_600_000, (0, 1.0), (80_000, 0.1), (400_000, 0.01)),
}
"""Settings of `experiments.breakout_cpu`."""

SMALL: Settings = {
    **BREAKOUT_CPU,
    "network": "small",
    "num_workers": 1,
    "envs_per_worker": 8,
    "replay_ratio": 8.0,
    "target_update_interval": 500,
    **epsilon(4_000_000, (0, 1.0), (80_000, 0.1), (400_000, 0.01)),
}
"""Small network, and a target that follows every 2,000 env steps"""


def _small(about: str, **changes: Any) -> Contestant:
    return Contestant(f"`small` with {about}", {**SMALL, **changes})


CONTESTANTS = {
    "breakout-cpu": Contestant("experiments.breakout_cpu: batches of 32, ratio 4, n-step 3", BREAKOUT_CPU),
    "breakout-cpu-target": Contestant(
        "the same with a target every 4,000 env steps",
        {**BREAKOUT_CPU, "target_update_interval": 500},
    ),
    "small": Contestant("small network, batches of 32, ratio 8; target every 2,000 env steps", SMALL),
    "small-nature": _small("the network of Mnih et al. 2015", network="nature"),
    "small-target-2000": _small("target every 8,000 env steps", target_update_interval=2_000),
    "small-64": _small("batches of 64 (target every 4,000 env steps)", batch_size=64),
    "small-128": _small(
        "batches of 128, ratio 4, rate 2e-4, 32 envs (target every 8,000 env steps)",
        batch_size=128,
        replay_ratio=4.0,
        learning_rate=2e-4,
        envs_per_worker=32,
        target_update_interval=250,
    ),
    "small-256": _small(
        "batches of 256, ratio 3, rate 5e-4, 32 envs, 2^19 transitions, beta 0.4 (target every 8,000 env steps)",
        beta_values=(0.4,),
        beta_at=(0.0,),
        batch_size=256,
        replay_ratio=3.0,
        learning_rate=5e-4,
        envs_per_worker=32,
        target_update_interval=94,
        replay_capacity=2**19,
        **epsilon(4_000_000, (0, 1.0), (200_000, 0.1), (1_000_000, 0.01)),
    ),
    "small-ratio-4": _small("ratio 4 (target every 4,000 env steps)", replay_ratio=4.0),
    "small-n-5": _small("n-step 5", n_step=5),
    "small-rate": _small("learning rate 2.5e-4", learning_rate=2.5e-4),
    "small-adam": _small("Adam's epsilon 1e-5", adam_epsilon=1e-5),
    "small-uniform": _small("uniform replay", replay="uniform"),
    "small-explore": _small(
        "epsilon 0.1 after 30,000 and 0.01 after 150,000 env steps",
        **epsilon(4_000_000, (0, 1.0), (30_000, 0.1), (150_000, 0.01)),
    ),
    "sb3": Contestant("Stable-Baselines3 with RL Baselines3 Zoo's Atari settings", peer="sb3"),
    "cartpole": Contestant(
        "a check of the race itself, on CartPole-v1",
        {"num_workers": 1, "learning_starts": 500, "replay_capacity": 2**14},
    ),
}
"""By name."""
