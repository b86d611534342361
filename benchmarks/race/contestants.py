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
    "preset": "paper",
    "log_interval": 2_000,
    "checkpoint_interval": 2**40,
    "checkpoint_minutes": 10.0,
    "eval_interval": 0,
    "device": "cpu",
}
"""Flags that belong to the race: no evaluation within the training, and few checkpoints, for both cost CPU time."""


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
"""Settings that `experiments.breakout_cpu` had until November 2026."""

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

SMALL_32: Settings = {
    **SMALL,
    "target_update_interval": 1_000,
    "beta_values": (0.4,),
    "beta_at": (0.0,),
    **epsilon(4_000_000, (0, 1.0), (70_000, 0.1), (140_000, 0.01)),
}
"""Many small batches, which learn Pong"""


SMALL_256: Settings = {
    **SMALL,
    "envs_per_worker": 32,
    "batch_size": 256,
    "replay_ratio": 3.0,
    "learning_rate": 5e-4,
    "target_update_interval": 94,
    "replay_capacity": 2**19,
    "beta_values": (0.4,),
    "beta_at": (0.0,),
    **epsilon(4_000_000, (0, 1.0), (200_000, 0.1), (1_000_000, 0.01)),
}
"""Few large batches from many envs, and a target that follows every 8,000 env steps"""


SMALL_64: Settings = {**SMALL_256, "batch_size": 64, "learning_rate": 2.5e-4, "target_update_interval": 94}
"""Batches of 64, and a target that follows every 2,000 env steps"""

LATER_64: Settings = {**SMALL_64, "learning_rate_factors": (1.0, 0.4), "learning_rate_at": (0.225, 0.275)}
"""The preset cpu: the same with a rate that falls"""

SLOWER_64: Settings = {
    **LATER_64,
    "network": "narrow",
    "learning_rate_factors": (1.0, 0.4, 0.16),
    "learning_rate_at": (0.225, 0.275, 0.5),
}
"""What learns Breakout fastest: half the network of Mnih et al. 2015, and a rate that keeps falling"""


def _with(about: str, **changes: Any) -> Contestant:
    return Contestant(f"`small-256` with {about}", {**SMALL_256, **changes})


CONTESTANTS = {
    "breakout-cpu": Contestant("breakout_cpu of old: batches of 32, ratio 4, n-step 3", BREAKOUT_CPU),
    "breakout-cpu-target": Contestant(
        "the same with a target every 4,000 env steps",
        {**BREAKOUT_CPU, "target_update_interval": 500},
    ),
    "small": Contestant("small network, batches of 32, ratio 8; target every 2,000 env steps", SMALL),
    "small-256": Contestant(
        "small network, batches of 256, ratio 3, rate 5e-4, 32 envs, 2^19 transitions, beta 0.4 (target every 8,000)",
        SMALL_256,
    ),
    "64-target-2000": Contestant(
        "`small-256` with batches of 64, rate 2.5e-4 (target every 2,000 env steps)", SMALL_64
    ),
    "64-later": Contestant(
        "the preset cpu: `64-target-2000` with a rate that falls to 1e-4 between 900,000 and 1,100,000 env steps",
        LATER_64,
    ),
    "64-fp32": Contestant(
        "`64-later` in float32 on a processor that multiplies bfloat16", {**LATER_64, "precision": "fp32"}
    ),
    "64-uniform": Contestant("`64-later` with uniform replay", {**LATER_64, "replay": "uniform"}),
    "64-ratio-1.5": Contestant(
        "`64-later` with ratio 1.5 (target every 2,000 env steps)",
        {**LATER_64, "replay_ratio": 1.5, "target_update_interval": 47},
    ),
    "64-rate-5e-4": Contestant(
        "`64-later` with a rate of 5e-4 that falls to 1e-4 over the same env steps",
        {**LATER_64, "learning_rate": 5e-4, "learning_rate_factors": (1.0, 0.2)},
    ),
    "64-target-500": Contestant(
        "`64-later` with a target every 500 env steps", {**LATER_64, "target_update_interval": 23}
    ),
    "64-ladder": Contestant("`64-later` with a ladder of epsilons over its envs", {**LATER_64, "epsilon_ladder": True}),
    "64-n-5": Contestant("`64-later` with n-step 5", {**LATER_64, "n_step": 5}),
    "64-narrow": Contestant("`64-later` with half the network of Mnih et al. 2015", {**LATER_64, "network": "narrow"}),
    "64-narrow-slower": Contestant(
        "`64-narrow` with a rate that keeps falling, to 4e-5 at 2,000,000 env steps", SLOWER_64
    ),
    "64-more-random": Contestant(
        "`64-narrow-slower` with an epsilon of 0.5 at 80,000 env steps and 0.01 at 1,000,000",
        {**SLOWER_64, **epsilon(4_000_000, (0, 1.0), (80_000, 0.5), (1_000_000, 0.01))},
    ),
    "64-less-random": Contestant(
        "`64-narrow-slower` with an epsilon of 0.1 at 80,000 env steps and 0.01 at 250,000",
        {**SLOWER_64, **epsilon(4_000_000, (0, 1.0), (80_000, 0.1), (250_000, 0.01))},
    ),
    "64-nature": Contestant("`64-later` with the network of Mnih et al. 2015", {**LATER_64, "network": "nature"}),
    "64-decay": Contestant(
        "`64-target-2000` with a rate that falls to 1e-4 between 400,000 and 600,000 env steps",
        {**SMALL_64, "learning_rate_factors": (1.0, 0.4, 0.2), "learning_rate_at": (0.1, 0.15, 0.5)},
    ),
    "32-ratio-8": Contestant(
        "small network, batches of 32, ratio 8, rate 1e-4 (target every 4,000 env steps)", SMALL_32
    ),
    "32-n-5": Contestant("`32-ratio-8` with n-step 5", {**SMALL_32, "n_step": 5}),
    "32-n-10": Contestant("`32-ratio-8` with n-step 10", {**SMALL_32, "n_step": 10}),
    "256-batch-64": _with(
        "batches of 64, rate 2.5e-4 (target every 8,000 env steps)",
        batch_size=64,
        learning_rate=2.5e-4,
        target_update_interval=376,
    ),
    "256-rate": _with("rate 2.5e-4", learning_rate=2.5e-4),
    "256-n-10": _with("n-step 10", n_step=10),
    "sb3": Contestant("Stable-Baselines3 with RL Baselines3 Zoo's Atari settings", peer="sb3"),
    "cleanrl": Contestant("CleanRL's dqn_atari.py, reimplemented", peer="cleanrl"),
    "labml": Contestant(
        "labml-nn's annotated DQN experiment (prioritized, dueling, double; Breakout only)", peer="labml"
    ),
    "pfrl": Contestant("PFRL's Atari reproduction of DQN", peer="pfrl"),
    "tianshou": Contestant("Tianshou's atari_dqn.py (double, n-step 3)", peer="tianshou"),
    "cartpole": Contestant(
        "a check of the race itself, on CartPole-v1",
        {"num_workers": 1, "learning_starts": 500, "replay_capacity": 2**14},
    ),
}
"""By name."""
