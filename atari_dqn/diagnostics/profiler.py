"""Where the time of a trainer's loop goes, and what the CPU cores are busy with.

The loop is observed from outside: its public calls are wrapped, and the learner reports its phases (`Learner.phase`).
The wait for the workers is split further by the CPU time they use meanwhile.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from atari_dqn.training.trainer import Trainer

PARTS = {
    "env": "waiting for emulators that compute",
    "transport": "CPU time of sending actions and receiving results",
    "idle": "waiting for nothing: wake-ups, cores in use by others",
    "inference": "gathering stacks, one forward pass, choosing actions",
    "sampling": "drawing a batch from the tree, gathering its frames",
    "forward": "target values, Q values, TD errors, loss",
    "backward": "gradients",
    "optimizer": "clipping, Adam's step, casting weights",
    "priorities": "writing TD errors to the tree",
    "update": "the rest of an update; all of it in a CUDA graph",
    "append": "storing frames in the ring, new rows in the tree",
    "other": "counting, and everything else in the loop",
}
"""Parts of the loop's wall time in this process and their meanings; each second belongs to one part."""

CALLS = {
    "waiting": (("workers", "send"), ("workers", "recv")),
    "inference": (("replay", "latest_observation"), ("actor", "act")),
    "update": (("learner", "update"),),
    "append": (("replay", "append"),),
    "other": (("", "iterate"),),
}
"""Calls of each part, as (attribute of the trainer, method). `waiting` is env, transport and idle together."""

PHASES = {
    "learner/sample": "sampling",
    "learner/loss": "forward",
    "learner/backward": "backward",
    "learner/clip": "optimizer",
    "learner/optimizer": "optimizer",
    "learner/priorities": "priorities",
    "learner/target_sync": "update",
}
"""Part of each phase of an update."""

UPDATE_PARTS = tuple(dict.fromkeys([*PHASES.values(), "update"]))
"""Parts of which an update consists."""

Meter = Callable[[], float]
"""A clock, or any other counter that never decreases."""


@dataclasses.dataclass(frozen=True)
class Account:
    """Where one turn of the loop went."""

    shares: dict[str, float]
    """Share of the wall time of each of `PARTS`; they add up to 1."""
    cores: dict[str, float]
    """Average number of cores busy with each activity; with `idle` they add up to the cores there are."""


@dataclasses.dataclass(frozen=True)
class Wait:
    """One call that sends to the workers or receives from them."""

    wall: float
    """Duration in seconds."""
    own: float
    """CPU seconds of the calling thread."""
    workers: Sequence[float]
    """CPU seconds of each worker meanwhile."""


def split_waits(waits: Sequence[Wait], cores: int) -> dict[str, float]:
    """Split the wall time of waits into seconds of `env`, `transport` and `idle`.

    `transport` is the CPU time of the waiting thread itself. `env` is the least time in which the workers' computation
    could be done: that of the busiest worker, or that of all of them divided by `cores` if it is longer. `idle` is the
    rest: workers that have not woken up yet, cores without work, and cores in use by other threads or programs.
    """
    parts = {"env": 0.0, "transport": 0.0, "idle": 0.0}
    for wait in waits:
        own = min(wait.own, wait.wall)
        least = max(max(wait.workers, default=0.0), sum(wait.workers) / cores)
        env = min(wait.wall - own, least)
        parts["env"] += env
        parts["transport"] += own
        parts["idle"] += wait.wall - own - env
    return parts


def share_of_cores(
    cores: int, wall: float, envs: float, learning: float, family: float, others: float
) -> dict[str, float]:
    """Average number of cores busy with each activity.

    Args:
        cores: Number of cores.
        wall: Duration in seconds.
        envs: CPU seconds of the workers.
        learning: CPU seconds of the updates.
        family: CPU seconds of this process and its descendants.
        others: CPU seconds of other programs.
    """
    busy = {
        "envs": envs / wall,
        "learning": learning / wall,
        "acting, storing": max(0.0, family - envs - learning) / wall,
        "other programs": others / wall,
    }
    return busy | {"idle": max(0.0, cores - sum(busy.values()))}


def worker_pids() -> list[int]:
    """Ids of the living processes that multiprocessing started for this one."""
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def cpu_clock(pid: int) -> float:
    """CPU seconds used so far by all threads of a process, to the nanosecond on Linux, else to 10 ms; 0 if it ended."""
    per_process_scheduler_clock = 2  # what `clock_getcpuclockid` of Linux's C library computes
    try:
        return time.clock_gettime((~pid << 3) | per_process_scheduler_clock)
    except OSError:
        pass
    try:
        spent = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(spent.user + spent.system)


@contextmanager
def account_of(
    trainer: Trainer, meter: Meter = time.perf_counter, settle: Callable[[], object] = lambda: None
) -> Iterator[dict[str, float]]:
    """Measure the parts of the loop while the context lasts.

    Args:
        trainer: A started trainer.
        meter: What is measured, seconds by default.
        settle: Called at the end of each call and phase, such as to wait for the GPU's work on it.

    Yields:
        What `meter` advanced by in each part of `CALLS` and `PHASES`, not counting the calls and phases within.
    """
    spent = dict.fromkeys((*CALLS, *UPDATE_PARTS), 0.0)
    within = [0.0]

    @contextmanager
    def metered(part: str) -> Iterator[None]:
        start = meter()
        within.append(0.0)
        try:
            yield
            settle()
        finally:
            took = meter() - start
            spent[part] += took - within.pop()
            within[-1] += took

    phase = trainer.learner.phase

    @contextmanager
    def metered_phase(name: str) -> Iterator[None]:
        with phase(name), metered(PHASES[name]):
            yield

    with ExitStack() as watches:
        for part, calls in CALLS.items():
            for owner, method in calls:
                watches.enter_context(_around(trainer, owner, method, functools.partial(metered, part)))
        trainer.learner.phase = metered_phase
        try:
            yield spent
        finally:
            trainer.learner.phase = phase


@contextmanager
def waits_of(trainer: Trainer, workers: Sequence[int]) -> Iterator[list[Wait]]:
    """Collect a `Wait` for every call in `CALLS["waiting"]`; `workers` are the process ids of the workers."""
    waits: list[Wait] = []

    def clocks() -> list[float]:
        return [cpu_clock(pid) for pid in workers]

    @contextmanager
    def timed() -> Iterator[None]:
        before, own, start = clocks(), time.thread_time(), time.perf_counter()
        yield
        wall, own = time.perf_counter() - start, time.thread_time() - own
        waits.append(Wait(wall, own, [now - then for now, then in zip(clocks(), before, strict=True)]))

    with ExitStack() as watches:
        for owner, method in CALLS["waiting"]:
            watches.enter_context(_around(trainer, owner, method, timed))
        yield waits


@contextmanager
def _around(
    trainer: Trainer, owner: str, method: str, context: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Enter a `context` around every call of a method; restore the method, or an outer wrapper of it, at the end."""
    target: Any = getattr(trainer, owner) if owner else trainer
    outer, call = vars(target).get(method), getattr(target, method)

    @functools.wraps(call)
    def wrapper(*arguments: Any, **named: Any) -> Any:
        with context():
            return call(*arguments, **named)

    setattr(target, method, wrapper)
    try:
        yield
    finally:
        if outer is None:
            delattr(target, method)
        else:
            setattr(target, method, outer)


def shares_of(spent: Mapping[str, float], waits: Sequence[Wait], cores: int) -> dict[str, float]:
    """`Account.shares`, from the seconds of `account_of` and the waits among them."""
    of_waits = split_waits(waits, cores)
    seconds = {**{part: spent.get(part, 0.0) for part in PARTS}, **of_waits}
    # Reading the CPU clocks takes a few microseconds per tick, which are in `waiting` but in no `Wait`.
    seconds["other"] += max(0.0, spent["waiting"] - sum(of_waits.values()))
    whole = sum(seconds.values())
    return {part: seconds[part] / whole for part in PARTS}
