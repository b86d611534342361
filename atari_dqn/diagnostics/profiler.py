"""A started `Trainer` flows in; where each second of its loop goes, and each core's, flows out.

The loop's calls are watched from outside, so that a training carries nothing of this. The wait for the workers is
taken apart by what they computed meanwhile, which their CPU clocks tell to the nanosecond.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from atari_dqn.training.trainer import Trainer

PARTS = {
    "env": "waiting while emulators compute",
    "transport": "telling workers to step, hearing that they have: CPU time",
    "idle": "waiting for no computing: wake-ups, cores that others have",
    "inference": "newest stacks gathered, one forward pass, actions chosen",
    "sampling": "a batch drawn from the tree and gathered from the ring",
    "forward": "target values, Q values, TD errors, loss",
    "backward": "gradients",
    "optimizer": "clipping, Adam's step, weights cast for the next pass",
    "priorities": "TD errors back into the tree",
    "update": "the rest of an update; all of it in a captured CUDA graph",
    "append": "frames into the ring, new rows into the tree",
    "other": "counting, and whatever else the loop does",
}
"""Parts of the loop's wall time and what each is, as this process spends it: every second is one part's."""

CALLS = {
    "waiting": (("workers", "send"), ("workers", "recv")),
    "inference": (("replay", "latest_observation"), ("actor", "act")),
    "sampling": (("replay", "sample"),),
    "forward": (("learner", "_loss"),),
    "backward": (("learner", "_backward"),),
    "optimizer": (("learner", "_clip_gradients"), ("learner", "_apply_gradients")),
    "priorities": (("replay", "update_priorities"),),
    "update": (("learner", "update"),),
    "append": (("replay", "append"),),
    "other": (("", "iterate"),),
}
"""The calls (owner, method) of each part; what one spends in another is the other's. `waiting` is three parts."""

UPDATE_PARTS = ("sampling", "forward", "backward", "optimizer", "priorities", "update")
"""Those of which an update consists."""

Meter = Callable[[], float]
"""A clock, or a counter that only grows."""


@dataclasses.dataclass(frozen=True)
class Account:
    """Of one turn of the loop."""

    shares: dict[str, float]
    """of the wall time, by `PARTS`; they add up to 1"""
    cores: dict[str, float]
    """cores kept busy on average, by whom; with `idle` they add up to the cores there are"""


@dataclasses.dataclass(frozen=True)
class Wait:
    """One call that hands over to the workers or waits for them."""

    wall: float
    """seconds"""
    own: float
    """CPU seconds of the thread that waits"""
    workers: Sequence[float]
    """CPU seconds of each worker meanwhile"""


def split_waits(waits: Sequence[Wait], cores: int) -> dict[str, float]:
    """Seconds of `env`, `transport` and `idle`; they add up to the wall time of the waits.

    `transport` is what the waiting thread computes itself. `env` is the least time that the workers' computing takes:
    as long as the busiest of them computes, and as all of it dealt out evenly to `cores`. `idle` is the rest: workers
    that have yet to wake, cores without work beside busy ones, and cores that other threads or programs have.
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
    """Who keeps `cores` cores busy for `wall` seconds: from CPU seconds of the workers, of the updates, of all our
    processes, and of other programs."""
    busy = {
        "envs": envs / wall,
        "learning": learning / wall,
        "acting, storing": max(0.0, family - envs - learning) / wall,
        "other programs": others / wall,
    }
    return busy | {"idle": max(0.0, cores - sum(busy.values()))}


def worker_pids() -> list[int]:
    """The processes that multiprocessing started for this one, and that live."""
    return [child.pid for child in multiprocessing.active_children() if child.pid is not None]


def cpu_clock(pid: int) -> float:
    """CPU seconds so far of all threads of a process, to the nanosecond on Linux, else to 10 ms; 0 when it is gone."""
    per_process_scheduler_clock = 2  # what `clock_getcpuclockid` of Linux's C library returns, without calling it
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
    """While it lasts, every call in `CALLS` adds to its part what `meter` moved by, less the calls within, in the dict.

    `settle` is called at the end of each: a GPU's work then falls to the call that asked for it.
    """
    spent = dict.fromkeys(CALLS, 0.0)
    within = [0.0]

    def metered(call: Callable[..., Any], part: str) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            start = meter()
            within.append(0.0)
            try:
                result = call(*arguments, **named)
                settle()
                return result
            finally:
                took = meter() - start
                spent[part] += took - within.pop()
                within[-1] += took

        return wrapper

    with ExitStack() as watches:
        for part, calls in CALLS.items():
            for owner, method in calls:
                watches.enter_context(_watch(trainer, owner, method, functools.partial(metered, part=part)))
        yield spent


@contextmanager
def waits_of(trainer: Trainer, workers: Sequence[int]) -> Iterator[list[Wait]]:
    """While it lasts, every call of `waiting` adds a `Wait` to the list. `workers` are the ids of their processes."""
    waits: list[Wait] = []

    def clocks() -> list[float]:
        return [cpu_clock(pid) for pid in workers]

    def timed(call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def wrapper(*arguments: Any, **named: Any) -> Any:
            before, own, start = clocks(), time.thread_time(), time.perf_counter()
            result = call(*arguments, **named)
            wall, own = time.perf_counter() - start, time.thread_time() - own
            computed = [now - then for now, then in zip(clocks(), before, strict=True)]
            waits.append(Wait(wall, own, computed))
            return result

        return wrapper

    with ExitStack() as watches:
        for owner, method in CALLS["waiting"]:
            watches.enter_context(_watch(trainer, owner, method, timed))
        yield waits


@contextmanager
def _watch(trainer: Trainer, owner: str, method: str, wrap: Callable[..., Callable[..., Any]]) -> Iterator[None]:
    """Let calls of `owner.method` go through `wrap` of it; afterwards all is as before, another watch too."""
    watched: Any = getattr(trainer, owner) if owner else trainer
    before = vars(watched).get(method)
    setattr(watched, method, wrap(getattr(watched, method)))
    try:
        yield
    finally:
        if before is None:
            delattr(watched, method)
        else:
            setattr(watched, method, before)


def shares_of(spent: Mapping[str, float], waits: Sequence[Wait], cores: int) -> dict[str, float]:
    """`Account.shares` from the seconds of `CALLS` and the waits among them."""
    of_waits = split_waits(waits, cores)
    seconds = {**{part: spent.get(part, 0.0) for part in PARTS}, **of_waits}
    # What reading the clocks cost, a few microseconds a tick, lies in `waiting` and in no `Wait`.
    seconds["other"] += max(0.0, spent["waiting"] - sum(of_waits.values()))
    whole = sum(seconds.values())
    return {part: seconds[part] / whole for part in PARTS}
