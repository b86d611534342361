"""The work that every contestant does, and the contestants.

Only the standard library is imported here, because every peer's environment runs it.
"""

from __future__ import annotations

import dataclasses
import json


@dataclasses.dataclass(frozen=True)
class Work:
    """A DQN training of Breakout, the same for all; each process gets it as a JSON argument."""

    replay_capacity: int = 2**14
    """Transitions: as many as in the labml experiment, and as Tianshou and PFRL can hold beside the others."""
    learning_starts: int = 2**14
    """Env steps: until the replay is full, as in the labml experiment, so that it is measured with a full replay."""
    warm_up_updates: int = 100
    """Number of updates before the first turn."""
    torch_threads: int = 1
    """Threads of the learner; workers have one."""
    game: str = "BreakoutNoFrameskip-v4"
    """An id with frame skip 1 and no sticky actions; the preprocessing skips 4."""
    num_envs: int = 8
    """Number of envs, each in a process of its own; the single-env loop has one, in its own process."""
    batch_size: int = 32
    env_steps_per_update: int = 4
    epsilon: float = 0.1
    """Exploration after learning has started: nearly every action needs the network."""
    gamma: float = 0.99
    learning_rate: float = 1e-4
    target_update_interval: int = 2000
    """Number of updates between target copies."""
    alpha: float = 0.6
    beta: float = 0.4
    seed: int = 1


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A contestant: how to run it, what its algorithm has, and how much faster ours must be."""

    title: str
    package: str
    """Distribution whose version is reported."""
    module: str
    """Module to run in its environment by `python -m`."""
    prioritized: bool
    double: bool
    dueling: bool
    at_least: float | None = None
    """Least ratio of our env steps/s to its own; None: no goal."""
    arguments: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        return self.package == "atari-dqn"

    @property
    def is_plain(self) -> bool:
        return not (self.prioritized or self.double or self.dueling)


SAME_ALGORITHM, PLAIN_DQN = 2.5, 2.0
"""Least ratios to peers with prioritized double DQN and to peers with plain DQN."""

HERE = "benchmarks.peers.contestants"


def _ours(title: str, **settings: str | bool) -> Contestant:
    """Our trainer with these settings, which determine what its algorithm has."""
    return Contestant(
        title,
        "atari-dqn",
        f"{HERE}.ours",
        prioritized=settings.get("replay") != "uniform",
        double=settings.get("double_q") is not False,
        dueling=settings.get("dueling") is not False,
        arguments=(json.dumps(settings),),
    )


CONTESTANTS = {
    "ours": _ours("atari_dqn"),
    "ours-fp32": _ours("atari_dqn fp32", precision="fp32"),
    "ours-plain": _ours("atari_dqn", replay="uniform", double_q=False, dueling=False),
    "labml": Contestant("labml-nn", "labml-nn", f"{HERE}.labml", True, True, True, SAME_ALGORITHM),
    "pfrl": Contestant("PFRL", "pfrl", f"{HERE}.pfrl", True, True, False, SAME_ALGORITHM),
    "tianshou": Contestant("Tianshou", "tianshou", f"{HERE}.tianshou", True, True, False, SAME_ALGORITHM),
    "sb3": Contestant("SB3", "stable-baselines3", f"{HERE}.sb3", False, False, False, PLAIN_DQN),
    "cleanrl": Contestant("CleanRL-style", "torch", f"{HERE}.cleanrl", False, False, False, PLAIN_DQN),
}
