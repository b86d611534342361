"""The profiler: every second belongs to one part, waits for workers are split, and no wrapper is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from atari_dqn.diagnostics.profiler import (
    CALLS,
    PARTS,
    UPDATE_PARTS,
    Wait,
    account_of,
    cpu_clock,
    share_of_cores,
    shares_of,
    split_waits,
    waits_of,
    worker_pids,
)
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
    with (
        account_of(trainer, time.perf_counter, lambda: synchronized.append(True)) as spent,
        waits_of(trainer, worker_pids()) as waits,
    ):
        start = time.perf_counter()
        for _ in range(50):
            trainer.iterate()
        whole = time.perf_counter() - start
    assert set(spent) == {*CALLS, *UPDATE_PARTS}
    assert all(seconds > 0 for seconds in spent.values())
    assert 0.8 * whole < sum(spent.values()) <= whole
    assert len(synchronized) >= 50 * 6
    assert len(waits) == 100, "one send and one recv a tick"
    assert all(len(wait.workers) == 2 for wait in waits)
    assert sum(sum(wait.workers) for wait in waits) > 0
    assert sum(wait.wall for wait in waits) <= spent["waiting"] + spent["other"]
    assert not any(method in vars(owner) for owner, (_, method) in zip(owners, calls, strict=True))
    assert trainer.learner.phase is phase


def test_any_counter_can_be_the_meter(trainer: Trainer) -> None:
    updates = trainer.learner.updates
    with account_of(trainer, lambda: float(trainer.learner.updates)) as counted:
        for _ in range(4):
            trainer.iterate()
    assert counted == dict.fromkeys((*CALLS, *UPDATE_PARTS), 0.0) | {"update": trainer.learner.updates - updates}


@pytest.mark.parametrize(
    ("wait", "cores", "env", "transport", "idle"),
    [
        (Wait(10, 1, [4, 4]), 2, 4, 1, 5),  # both at once: 4 seconds
        (Wait(10, 1, [4, 4, 4, 4]), 2, 8, 1, 1),  # two on each core
        (Wait(10, 1, [7, 1]), 2, 7, 1, 2),  # the busiest
        (Wait(10, 1, [9.5, 9.5]), 2, 9, 1, 0),  # limited by the wall time
        (Wait(10, 11, [1, 1]), 2, 0, 10, 0),  # more CPU time than wall time
        (Wait(10, 0, []), 2, 0, 0, 10),
    ],
)
def test_a_wait_is_split_into_env_transport_and_idle(
    wait: Wait, cores: int, env: float, transport: float, idle: float
) -> None:
    assert split_waits([wait], cores) == {"env": env, "transport": transport, "idle": idle}
    assert sum(split_waits([wait, wait], cores).values()) == 2 * wait.wall


def test_the_shares_add_up_to_the_whole() -> None:
    spent = dict.fromkeys(CALLS, 0.0) | {"waiting": 5.0, "forward": 3.0, "other": 2.0}
    shares = shares_of(spent, [Wait(4, 1, [2])], cores=2)
    expected = {"env": 0.2, "transport": 0.1, "idle": 0.1, "forward": 0.3, "other": 0.3}
    assert shares == pytest.approx(dict.fromkeys(PARTS, 0.0) | expected)
    assert list(shares) == list(PARTS)


def test_the_cores_add_up_to_all_of_them() -> None:
    shares = share_of_cores(4, wall=2.0, envs=2.0, learning=3.0, family=5.5, others=0.5)
    assert shares == {"envs": 1, "learning": 1.5, "acting, storing": 0.25, "other programs": 0.25, "idle": 1}


def test_the_clock_of_a_process_is_its_cpu_time() -> None:
    before, mine = cpu_clock(os.getpid()), time.process_time()
    sum(range(10**6))
    assert cpu_clock(os.getpid()) - before >= time.process_time() - mine - 0.05
    command = "sum(range(3 * 10**6)); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", command], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        times = psutil.Process(child.pid).cpu_times()
        assert cpu_clock(child.pid) == pytest.approx(times.user + times.system, abs=0.05)
        child.communicate(b"\n")
    assert cpu_clock(child.pid) == 0, "it has ended"
