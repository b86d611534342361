"""Speed measurements of a `Trainer`: its workers alone, its learner alone, its loop, and where the loop's time goes.

Every measurement is one short turn. A caller takes many turns of several kinds in alternation, so that other load on
the machine affects all kinds alike.
"""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import psutil
import torch

from atari_dqn.agent.schedules import Piecewise
from atari_dqn.diagnostics.profiler import account_of
from atari_dqn.system.linux import allowed_cores
from atari_dqn.training.trainer import Trainer
from atari_dqn.workers.pool import WorkerPool

EPSILON = 0.1
"""Exploration while measuring: nearly every action needs the network, but no game waits forever for FIRE"""
WARM_UP = 0.3
"""Seconds of each kind that are discarded: first calls allocate memory and choose kernels"""


@dataclasses.dataclass(frozen=True)
class Turn:
    """What was done in one turn, and what it cost."""

    env_steps: int
    updates: int
    wall: float
    """Duration in seconds"""
    cpu: float
    """CPU seconds of this process and its descendants"""
    others: float
    """CPU seconds of all other programs; on a virtual machine also those stolen by its neighbours"""

    @property
    def env_steps_per_second(self) -> float:
        return self.env_steps / self.wall

    @property
    def updates_per_second(self) -> float:
        return self.updates / self.wall


@dataclasses.dataclass(frozen=True)
class Rates:
    """Medians over turns of one kind."""

    env_steps_per_second: float
    updates_per_second: float
    cores_busy: float
    """CPU seconds of this process and its descendants per second"""
    cores_taken: float
    """CPU seconds of other programs per second"""
    turns: list[Turn]

    @staticmethod
    def of(turns: Sequence[Turn]) -> Rates:
        return Rates(
            env_steps_per_second=statistics.median(turn.env_steps_per_second for turn in turns),
            updates_per_second=statistics.median(turn.updates_per_second for turn in turns),
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
    finish: Callable[[], object] = lambda: None,
) -> Turn:
    """Repeat `work` for at least `seconds`, and at least once, then call `finish`, such as to wait for a GPU.

    `env_steps` and `updates` are counters, read before and after.
    """
    steps_before, updates_before, cpu_before, machine_before = env_steps(), updates(), family_cpu(), machine_cpu()
    start, done = time.perf_counter(), False
    while not done:
        work()
        done = time.perf_counter() - start >= seconds
    finish()
    wall, cpu, machine = time.perf_counter() - start, family_cpu() - cpu_before, machine_cpu() - machine_before
    return Turn(env_steps() - steps_before, updates() - updates_before, wall, cpu, max(0.0, machine - cpu))


def family_cpu() -> float:
    """CPU seconds used so far by this process and its living descendants."""
    spent = time.process_time()
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            spent += times.user + times.system
    return spent


def machine_cpu() -> float:
    """CPU seconds for which the cores this process may use have been busy so far."""
    mine = allowed_cores()
    # `user` and `nice` already include the time of guests.
    return sum(
        float(spent)
        for core, times in enumerate(psutil.cpu_times(percpu=True))
        for kind, spent in times._asdict().items()
        if (not mine or core in mine) and kind not in ("idle", "iowait", "guest", "guest_nice")
    )


def family_memory() -> int:
    """Bytes of memory held by this process and its living descendants; on Linux, shared pages count once (PSS)."""
    me = psutil.Process()
    family = (me, *me.children(recursive=True))
    return sum(each.memory_full_info().pss if psutil.LINUX else each.memory_info().rss for each in family)


class RandomPlay:
    """Steps a pool of workers with random actions and counts the env steps; a reset is not one."""

    def __init__(self, workers: WorkerPool, seed: int) -> None:
        self.workers = workers
        self.env_steps = 0
        self._rng = np.random.default_rng(seed)

    def tick(self) -> None:
        self.workers.send(self._rng.integers(self.workers.spec.num_actions, size=self.workers.num_envs))
        self.env_steps += int(np.count_nonzero(~self.workers.recv().is_reset))


class Bench:
    """Benchmarks a fresh trainer. Do not train with it afterwards.

    Args:
        trainer: A trainer that has not been started.
        tick: Called at every iteration and update.
    """

    def __init__(self, trainer: Trainer, tick: Callable[[], object] = lambda: None) -> None:
        self.trainer = trainer
        self._tick = tick

    def prepare(self) -> None:
        """Start the workers, play at random until `learning_starts` env steps, then warm up every kind of turn."""
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
        """Step the envs with random actions; learner and replay are idle."""
        assert isinstance(self.trainer.workers, WorkerPool), "call prepare() first"
        play = RandomPlay(self.trainer.workers, seed=self.trainer.env_steps)
        turn = measure(self._ticking(play.tick), seconds, env_steps=lambda: play.env_steps)
        # The replay has not seen these frames: cut its games at the last ones it saw.
        self.trainer.replay.cut()
        return turn

    def learner_alone(self, seconds: float) -> Turn:
        """Make updates from the replay; the envs are idle."""
        learner = self.trainer.learner
        before = learner.updates
        turn = measure(
            self._ticking(learner.update), seconds, updates=lambda: learner.updates, finish=self._synchronize
        )
        learner.updates = before  # the loop counts its own updates only
        return turn

    def loop(self, seconds: float) -> Turn:
        """Run the training loop."""
        return measure(
            self._ticking(self.trainer.iterate),
            seconds,
            env_steps=lambda: self.trainer.env_steps,
            updates=lambda: self.trainer.learner.updates,
            finish=self._synchronize,
        )

    def account(self, seconds: float) -> dict[str, float]:
        """Run the training loop; the share of its wall time that each of `LOOP_PARTS` takes."""
        with account_of(self.trainer, settle=self._synchronize) as spent:
            # Looked up at every call: `iterate` is wrapped now.
            measure(self._ticking(lambda: self.trainer.iterate()), seconds)
        return {part: taken / sum(spent.values()) for part, taken in spent.items()}

    def _ticking(self, work: Callable[[], object]) -> Callable[[], None]:
        def both() -> None:
            work()
            self._tick()

        return both

    def _synchronize(self) -> None:
        if self.trainer.device.type == "cuda":
            torch.cuda.synchronize(self.trainer.device)
