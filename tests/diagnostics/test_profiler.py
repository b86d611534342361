"""The profiler: every second belongs to one part, and no wrapper is left behind."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from atari_dqn.diagnostics.profiler import CALLS, LOOP_PARTS, account_of
from atari_dqn.training.trainer import Trainer
from tests.test_bench import make_trainer


@pytest.fixture
def trainer() -> Iterator[Trainer]:
    """A trainer that has started to learn."""
    trainer = make_trainer(2, 2)
    try:
        trainer.start()
        while trainer.learner.updates < 10:
            trainer.iterate()
        yield trainer
    finally:
        trainer.close()


def test_every_second_belongs_to_one_part_and_no_wrapper_stays(trainer: Trainer) -> None:
    calls = [("", "iterate"), *(call for part in CALLS.values() for call in part if call[0])]
    owners = [getattr(trainer, owner) if owner else trainer for owner, _ in calls]
    synchronized: list[bool] = []
    phase = trainer.learner.phase
    with account_of(trainer, settle=lambda: synchronized.append(True)) as spent:
        start = time.perf_counter()
        for _ in range(50):
            trainer.iterate()
        whole = time.perf_counter() - start
    assert list(spent) == list(LOOP_PARTS)
    assert all(seconds > 0 for seconds in spent.values())
    assert 0.8 * whole < sum(spent.values()) <= whole
    assert len(synchronized) >= 50 * 6
    assert not any(method in vars(owner) for owner, (_, method) in zip(owners, calls, strict=True))
    assert trainer.learner.phase is phase


def test_any_counter_can_be_the_meter(trainer: Trainer) -> None:
    updates = trainer.learner.updates
    with account_of(trainer, lambda: float(trainer.learner.updates)) as counted:
        for _ in range(4):
            trainer.iterate()
    assert counted == dict.fromkeys(LOOP_PARTS, 0.0) | {"update": trainer.learner.updates - updates}
