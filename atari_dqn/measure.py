"""A started `Trainer` flows in; how fast its workers, its learner and its loop are, and where the time goes, flow out.

Every measurement is a short turn, so that a caller can take many in alternation: what disturbs the machine then
disturbs all alike. Nothing here is part of a training.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import torch

from atari_dqn.envs.pool import WorkerPool
from atari_dqn.schedules import Piecewise
from atari_dqn.trainer import Trainer

EPSILON = 0.1
"""While measured: nearly every decision needs the network, and yet no game stands still for want of a FIRE."""
WARM_UP = 0.3
"""Seconds of each kind that are thrown away: first calls allocate, and choose their kernels."""

Tick = Callable[[], object]
"""Called every now and then while a turn lasts."""


@dataclasses.dataclass(frozen=True)
class Turn:
    """What was done in one turn, and at what cost."""

    env_steps: int
    updates: int
    wall: float
    """seconds"""
    cpu: float
    """CPU seconds of this process and its workers"""
    others: float
    """CPU seconds of all other programs of the machine, and of its neighbours where it is a virtual one"""


@dataclasses.dataclass(frozen=True)
class Rates:
    """Medians over turns of the same kind."""

    env_steps_per_second: float
    updates_per_second: float
    cores_busy: float
    """CPU seconds per second"""
    cores_taken: float
    """CPU seconds per second that others took"""
    turns: list[Turn]

    @staticmethod
    def of(turns: Sequence[Turn]) -> Rates:
        return Rates(
            env_steps_per_second=statistics.median(turn.env_steps / turn.wall for turn in turns),
            updates_per_second=statistics.median(turn.updates / turn.wall for turn in turns),
            cores_busy=statistics.median(turn.cpu / turn.wall for turn in turns),
            cores_taken=statistics.median(turn.others / turn.wall for turn in turns),
            turns=list(turns),
        )


def measure(
    work: Callable[[], object],
    seconds: float,
    *,
    env_steps: Callable[[], int] = lambda: 0,
    updates: Callable[[], int] = lambda: 0,
    finish: Tick = lambda: None,
) -> Turn:
    """Repeat `work` for at least `seconds`, once at least, then `finish`. `env_steps` and `updates` are counters."""
    steps_before, updates_before, cpu_before, machine_before = env_steps(), updates(), family_cpu(), machine_cpu()
    start, done = time.perf_counter(), False
    while not done:
        work()
        done = time.perf_counter() - start >= seconds
    finish()
    wall, cpu, machine = time.perf_counter() - start, family_cpu() - cpu_before, machine_cpu() - machine_before
    return Turn(env_steps() - steps_before, updates() - updates_before, wall, cpu, max(0.0, machine - cpu))


def family_cpu() -> float:
    """CPU seconds, so far, of this process and all its living descendants."""
    of_workers = (child.cpu_times() for child in psutil.Process().children(recursive=True))
    return time.process_time() + sum(times.user + times.system for times in of_workers)


def machine_cpu() -> float:
    """CPU seconds, so far, that the machine's cores were not idle."""
    times = psutil.cpu_times()._asdict()
    # `user` and `nice` count what guests took already.
    return sum(spent for kind, spent in times.items() if kind not in ("idle", "iowait", "guest", "guest_nice"))


class RandomPlay:
    """Steps a pool with random actions and counts the env steps (reset ticks are none)."""

    def __init__(self, workers: WorkerPool, seed: int) -> None:
        self.workers = workers
        self.env_steps = 0
        self._rng = np.random.default_rng(seed)

    def tick(self) -> None:
        self.workers.send(self._rng.integers(self.workers.spec.num_actions, size=self.workers.num_envs))
        self.env_steps += int(np.count_nonzero(~self.workers.recv().is_reset))


class Bench:
    """Measures a trainer that is not yet started, which is worth nothing as a training afterwards.

    `tick` is called at every step and update.
    """

    def __init__(self, trainer: Trainer, tick: Tick = lambda: None) -> None:
        self.trainer = trainer
        self._tick = tick

    def prepare(self) -> None:
        """Start the workers and play at random until `learning_starts`; from then on the network acts."""
        trainer = self.trainer
        trainer.start()
        trainer.epsilon = Piecewise(((0, 1.0),))
        while trainer.env_steps < trainer.config.learner.learning_starts:
            trainer.iterate()
            self._tick()
        trainer.epsilon = Piecewise(((0, EPSILON),))
        for warm_up in (self.workers_alone, self.learner_alone, self.loop):
            warm_up(WARM_UP)

    def workers_alone(self, seconds: float) -> Turn:
        """Envs stepped at random, learner and replay idle."""
        assert self.trainer.workers is not None, "prepare() comes first"
        play = RandomPlay(self.trainer.workers, seed=self.trainer.env_steps)
        turn = measure(self._ticking(play.tick), seconds, env_steps=lambda: play.env_steps)
        # The replay has missed these frames: its games end where it saw them last.
        self.trainer.replay.cut()
        return turn

    def learner_alone(self, seconds: float) -> Turn:
        """Whole updates on the replay as it is, envs idle."""
        learner = self.trainer.learner
        before = learner.updates
        turn = measure(
            self._ticking(learner.update), seconds, updates=lambda: learner.updates, finish=self._synchronize
        )
        learner.updates = before  # the loop must not take these for its own
        return turn

    def loop(self, seconds: float) -> Turn:
        """The real loop."""
        return measure(
            self._ticking(self.trainer.iterate),
            seconds,
            env_steps=lambda: self.trainer.env_steps,
            updates=lambda: self.trainer.learner.updates,
            finish=self._synchronize,
        )

    def account(self, seconds: float) -> dict[str, float]:
        """Where the loop's time goes: the share of each of `PARTS`; they add up to 1."""
        with account_of(self.trainer, self._synchronize) as spent:
            measure(self._ticking(self.trainer.iterate), seconds)
        whole = sum(spent.values())
        return {part: spent[part] / whole for part in PARTS}

    def _ticking(self, work: Callable[[], object]) -> Callable[[], None]:
        def both() -> None:
            work()
            self._tick()

        return both

    def _synchronize(self) -> None:
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)


PARTS = {
    "env wait": (("workers", "send"), ("workers", "recv")),
    "acting": (("replay", "latest_observation"), ("actor", "act")),
    "sampling": (("replay", "sample"),),
    "gradient step": (("learner", "update"),),
    "priorities": (("replay", "update_priorities"),),
    "append": (("replay", "append"),),
    "other": (("", "iterate"),),
}
"""Parts of the loop, and the calls (owner, method) that are theirs; what one spends in another is the other's."""


@contextmanager
def account_of(trainer: Trainer, synchronize: Tick = lambda: None) -> Iterator[dict[str, float]]:
    """While it lasts, every call in `PARTS` adds the seconds it took, less those of the calls within, to the dict.

    `synchronize` is called at the end of each, so that a GPU's work falls to the call that asked for it.
    """
    spent = dict.fromkeys(PARTS, 0.0)
    within = [0.0]
    watched: list[tuple[Any, str]] = []

    def watch(owner: Any, method: str, part: str) -> None:
        call = getattr(owner, method)

        @functools.wraps(call)
        def timed(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            within.append(0.0)
            try:
                result = call(*arguments, **named)
                synchronize()
                return result
            finally:
                took = time.perf_counter() - start
                spent[part] += took - within.pop()
                within[-1] += took

        setattr(owner, method, timed)
        watched.append((owner, method))

    try:
        for part, calls in PARTS.items():
            for owner, method in calls:
                watch(getattr(trainer, owner) if owner else trainer, method, part)
        yield spent
    finally:
        for owner, method in watched:
            delattr(owner, method)
