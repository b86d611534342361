"""Where the time of a trainer's loop goes.

The loop is observed from outside: its public calls are wrapped, and the learner reports its phases (`Learner.phase`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atari_dqn.training.trainer import Trainer

LOOP_PARTS = {
    "waiting": "for the workers: emulators, pipes, wake-ups",
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
"""Parts of the loop's wall time in this process and their meanings; each second belongs to one part"""

CALLS = {
    "waiting": (("workers", "send"), ("workers", "recv")),
    "inference": (("replay", "latest_observation"), ("actor", "act")),
    "update": (("learner", "update"),),
    "append": (("replay", "append"),),
    "other": (("", "iterate"),),
}
"""Calls of each part, as (attribute of the trainer, method)"""

PHASES = {
    "learner/sample": "sampling",
    "learner/loss": "forward",
    "learner/backward": "backward",
    "learner/clip": "optimizer",
    "learner/optimizer": "optimizer",
    "learner/priorities": "priorities",
    "learner/target_sync": "update",
}
"""Part of each phase of an update"""

UPDATE_PARTS = tuple(dict.fromkeys([*PHASES.values(), "update"]))
"""Parts of which an update consists"""


@contextmanager
def account_of(
    trainer: Trainer, meter: Callable[[], float] = time.perf_counter, settle: Callable[[], object] = lambda: None
) -> Iterator[dict[str, float]]:
    """Measure the parts of the loop while the context lasts.

    Args:
        trainer: A started trainer.
        meter: Monotonic counter to read; seconds by default.
        settle: Called at the end of each call and phase, such as to wait for the GPU's work on it.

    Yields:
        The counter's increase in each of `LOOP_PARTS`, without nested calls and phases.
    """
    spent = dict.fromkeys(LOOP_PARTS, 0.0)
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
