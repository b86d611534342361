"""The parts that a trainer is handed: replay, learner, actor and a pool of environments, and their seeds.

`assembly.local_parts` makes them for one machine. Over several machines the same trainer runs with another pool.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from atari_dqn.agent.actor import Actor
from atari_dqn.agent.learner import Learner
from atari_dqn.envs.step import StepResult
from atari_dqn.replay.base import Replay

OnWait = Callable[[str], None]
"""Called with a line of text while the loop waits for something; what it raises ends the wait."""


class EnvPool(Protocol):
    """Many environments behind separate `send` and `recv`, as `workers.pool.WorkerPool` has them."""

    failures: list[str]

    def reset(self) -> StepResult: ...
    def send(self, actions: npt.NDArray[np.integer[Any]]) -> None: ...
    def recv(self) -> StepResult: ...
    def state(self) -> dict[str, npt.NDArray[Any]]: ...
    def restore(self, state: Mapping[str, npt.NDArray[Any]], on_tick: Callable[[int, int], None]) -> StepResult: ...
    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Parts:
    """What a `Trainer` is made of."""

    replay: Replay
    learner: Learner
    actor: Actor
    make_pool: Callable[[int, OnWait | None], EnvPool]
    """Starts the environments from a seed; its second argument is told of workers that keep the loop waiting"""


CONSUMERS = ("network", "replay", "actor", "envs", "evaluation")


def seeds_of(root: int) -> dict[str, int]:
    """Independent seeds for the `CONSUMERS` of a training whose setting `seed` is `root`."""
    return {name: branch_of(root, index) for index, name in enumerate(CONSUMERS)}


def branch_of(root: int, branch: int) -> int:
    """A 31-bit seed derived from `root`; different branches are independent."""
    return int(np.random.SeedSequence((root, branch)).generate_state(1)[0] >> 1)
