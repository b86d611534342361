"""A started `Trainer` flows in; how fast its workers, its learner and its loop are, and where the time goes, flow out.

Every measurement is a short turn, so that a caller can take many in alternation: what disturbs the machine then
disturbs all alike. Nothing here is part of a training.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import psutil
import torch

from atari_dqn.agent.schedules import Piecewise
from atari_dqn.diagnostics.profiler import (
    UPDATE_PARTS,
    Account,
    account_of,
    cpu_clock,
    share_of_cores,
    shares_of,
    waits_of,
    worker_pids,
)
from atari_dqn.system.machine import cores
from atari_dqn.training.trainer import Trainer
from atari_dqn.workers.pool import WorkerPool

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
    return time.process_time() + sum(cpu_clock(child.pid) for child in psutil.Process().children(recursive=True))


def machine_cpu() -> float:
    """CPU seconds, so far, that the cores which this process may use were not idle."""
    mine = os.sched_getaffinity(0)
    # `user` and `nice` count what guests took already.
    return sum(
        spent
        for core, times in enumerate(psutil.cpu_times(percpu=True))
        for kind, spent in times._asdict().items()
        if core in mine and kind not in ("idle", "iowait", "guest", "guest_nice")
    )


def family_memory() -> int:
    """Bytes of memory that this process and all its living descendants hold now, shared pages counted once (PSS)."""
    me = psutil.Process()
    return sum(process.memory_full_info().pss for process in (me, *me.children(recursive=True)))


def family_peak() -> int:
    """Bytes: the largest resident set that each process of the family ever had, summed; shared pages count for each."""
    me = psutil.Process()
    return sum(_resident_peak(process.pid) for process in (me, *me.children(recursive=True)))


def _resident_peak(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


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

    def account(self, seconds: float) -> Account:
        """Where the time of the loop goes, and that of the cores."""
        trainer, settle, workers = self.trainer, self._synchronize, worker_pids()
        with (
            account_of(trainer, time.perf_counter, settle) as spent,
            account_of(trainer, time.process_time, settle) as computed,
            waits_of(trainer, workers) as waits,
        ):
            envs = sum(cpu_clock(pid) for pid in workers)
            turn = measure(self._ticking(lambda: trainer.iterate()), seconds)
            envs = sum(cpu_clock(pid) for pid in workers) - envs
        learning = sum(computed[part] for part in UPDATE_PARTS)
        return Account(
            shares_of(spent, waits, cores()),
            share_of_cores(cores(), turn.wall, envs, learning, turn.cpu, turn.others),
        )

    def update_account(self, seconds: float) -> dict[str, float]:
        """Seconds that each of `UPDATE_PARTS` takes of an update, envs idle."""
        learner = self.trainer.learner
        before = learner.updates
        with account_of(self.trainer, time.perf_counter, self._synchronize) as spent:
            turn = measure(self._ticking(lambda: learner.update()), seconds, updates=lambda: learner.updates)
        learner.updates = before
        return {part: spent[part] / turn.updates for part in UPDATE_PARTS}

    def _ticking(self, work: Callable[[], object]) -> Callable[[], None]:
        def both() -> None:
            work()
            self._tick()

        return both

    def _synchronize(self) -> None:
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)
