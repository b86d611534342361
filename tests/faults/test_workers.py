"""Tests of failing workers during training: each is named and replaced, and no transition joins two of its lives."""

from __future__ import annotations

import os
import re
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.make import env_spec, spec_of
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.training.assembly import assemble
from atari_dqn.training.trainer import Trainer
from atari_dqn.workers.local import LocalSupervisor
from atari_dqn.workers.pool import WorkerError, WorkerPool
from atari_dqn.workers.supervisor import FORGIVE_TICKS, Supervisor
from tests.stubs import Fragile, pids

NATURE = PROTOCOLS["nature"]
Supervise = Callable[..., Supervisor]


def pool_of(env_id: str, **settings: Any) -> WorkerPool:
    """Two workers of two envs."""
    spec = env_spec(f"tests.stubs:{env_id}", NATURE, 4)
    return WorkerPool(spec, NATURE, num_workers=2, envs_per_worker=2, seed=1, **({"restarts": 5} | settings))


def trainer_of(env_id: str, supervisor: Supervise = LocalSupervisor, **settings: Any) -> Trainer:
    """Three workers of two envs, on a small network."""
    shape: dict[str, Any] = {"env_id": env_id, "num_workers": 3, "envs_per_worker": 2, "replay_capacity": 4096}
    learner: dict[str, Any] = {"learning_starts": 60, "batch_size": 8, "mlp_hidden": (16,), "device": "cpu"}
    config = TrainConfig().replace(**(shape | learner | {"precision": "fp32", "n_step": 3} | settings)).validate()
    spec = spec_of(config.env)
    return Trainer(config, spec, assemble(config, spec, supervisor))


def heard(failure: str, supervisor: Supervise) -> str:
    """A message about a worker, without the name of its node, which it must have on a cluster alone."""
    plain, named = re.subn(r" on node \S+ \(\w{6}\)", "", failure)
    assert named == (supervisor is not LocalSupervisor)
    return plain


def iterate(trainer: Trainer, in_mid_step: signal.Signals | None = None, worker: int = 0) -> None:
    """One turn of the loop, in which a worker gets a signal after it was sent a step and before it has done it."""
    assert trainer.workers is not None
    actions = trainer.actor.act(trainer.replay.latest_observation(), 0.5)
    if in_mid_step is not None:
        pid = pids(trainer)[worker]
        os.kill(pid, signal.SIGSTOP)  # or it might be done by then
    trainer.workers.send(actions)
    if in_mid_step is not None:
        os.kill(pid, in_mid_step)
    for _ in range(trainer.updates_due()):
        trainer.learner.update()
    trainer.observe(actions, trainer.workers.recv())


def check_that_lives_are_apart(trainer: Trainer) -> int:
    """Of every transition that may be drawn: one life, one episode, `m` steps further, and the rewards in between.

    Returns in how many lives they were.
    """
    replay = trainer.replay
    slots = np.flatnonzero(replay.ring.drawable)
    assert slots.size
    frames = replay.ring.frames.flatten(0, 1).numpy()
    returns, discounts, next_slots = replay.ring.n_step_returns(torch.from_numpy(slots), 1.0, clip=False)
    before, after = frames[slots], frames[next_slots.numpy()]
    np.testing.assert_array_equal(before[:, :2], after[:, :2], "the same process and episode")
    steps = (after[:, 2] - before[:, 2]).astype(int)
    assert set(steps) <= {1, 2, 3}
    expected = [sum(range(int(first) + 1, int(first) + 1 + m)) for first, m in zip(before[:, 2], steps, strict=True)]
    np.testing.assert_array_equal(returns.numpy(), expected)
    assert set(discounts.tolist()) <= {0.0, 1.0}
    return len(np.unique(before[:, 0]))


@pytest.mark.parametrize("kills", [5, pytest.param(50, marks=pytest.mark.slow)])
def test_a_worker_killed_in_mid_step_is_replaced_and_no_transition_joins_its_lives(
    kills: int, supervisor: Supervise
) -> None:
    rng = np.random.default_rng(0)
    trainer = trainer_of("tests.stubs:Lives-v0", supervisor, worker_restarts=kills)
    try:
        trainer.start()
        assert trainer.workers is not None
        first = set(pids(trainer))
        for _ in range(30):
            iterate(trainer)
        descriptors = psutil.Process().num_fds()
        for kill in range(kills):
            worker = int(rng.integers(3))
            pid = pids(trainer)[worker]
            iterate(trainer, signal.SIGKILL, worker)
            assert not psutil.pid_exists(pid)
            (failure,) = trainer.workers.failures
            envs = f"envs {2 * worker} to {2 * worker + 1}"
            said = heard(failure, supervisor)
            assert said == f"worker {worker} ({envs} of tests.stubs:Lives-v0) was killed by SIGKILL"
            trainer.workers.failures.clear()
            updates = trainer.learner.updates
            for _ in range(int(rng.integers(1, 20))):
                iterate(trainer)
            if kill > 3:
                assert trainer.learner.updates > updates, "training continues"
        lives = check_that_lives_are_apart(trainer)
        assert lives > kills // 2
        if supervisor is LocalSupervisor:
            assert psutil.Process().num_fds() == descriptors
        assert len(first | set(pids(trainer))) > 3
    finally:
        trainer.close()


def test_unfinished_games_of_a_replaced_worker_do_not_count(supervisor: Supervise) -> None:
    """Unfinished games of a replaced worker are not counted; the other workers' games continue."""
    trainer = trainer_of("tests.stubs:FiveSteps-v0", supervisor)
    try:
        trainer.start()
        for _ in range(3):
            iterate(trainer)
        iterate(trainer, signal.SIGKILL, worker=1)
        for _ in range(7):
            iterate(trainer)
        assert trainer.workers is not None
        assert set(trainer.episodes.returns) == {5.0}
        assert set(trainer.episodes.lengths) == {5}
        # 11 ticks: for four envs a game of 5, a reset and 5 more; for two 3 steps, then a game of 5, a reset and one.
        assert trainer.episodes.finished == 4 * 2 + 2
        assert trainer.env_steps == 4 * 10 + 2 * (3 + 5 + 1)
    finally:
        trainer.close()


def test_a_stopped_worker_is_replaced_after_its_deadline(supervisor: Supervise) -> None:
    trainer = trainer_of("tests.stubs:Lives-v0", supervisor, worker_deadline=1.5)
    try:
        trainer.start()
        for _ in range(30):
            iterate(trainer)
        iterate(trainer, signal.SIGSTOP, worker=2)
        assert trainer.workers is not None
        (failure,) = trainer.workers.failures
        assert heard(failure, supervisor).startswith(
            "worker 2 (envs 4 to 5 of tests.stubs:Lives-v0) has not answered for 1.5 s and hangs;"
        )
        for _ in range(30):
            iterate(trainer)
        check_that_lives_are_apart(trainer)
    finally:
        trainer.close()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("raise", ["failed:\nTraceback", "RuntimeError: the stub broke"]),
        ("exit", ["SystemExit: the stub left"]),
        ("crash", ["exited with code 7"]),
        ("hang", ["hangs", "_sleep_forever"]),
        ("spin", ["hangs", "stubs.py"]),
        ("nan", ["FloatingPointError: env 2: reward is NaN or too large for float32: nan"]),
        ("1e300", ["FloatingPointError: env 2: reward is NaN or too large for float32: 1e+300"]),
        ("inf observed", ["FloatingPointError: env 2: observation is NaN or too large for float32", "inf"]),
    ],
)
def test_a_fault_that_comes_once_costs_its_worker_alone(fault: str, words: list[str], supervisor: Supervise) -> None:
    with pool_of("Fragile-v0", deadline=1.5, supervisor=supervisor) as pool:
        pool.reset()
        nothing = np.zeros(4, np.int64)
        for _ in range(3):
            pool.send(nothing)
            pool.recv()
        pool.send(np.array([0, 0, Fragile.FAULTS.index(fault), 0]))
        result = pool.recv()
        np.testing.assert_array_equal(result.is_reset, [False, False, True, True])
        np.testing.assert_array_equal(result.frames[:, 1], [4, 4, 0, 0], "the step within the episode")
        np.testing.assert_array_equal(result.rewards, [1, 1, 0, 0])
        assert not (result.terminated | result.truncated | result.life_lost).any()
        (failure,) = pool.failures
        assert heard(failure, supervisor).startswith("worker 1 (envs 2 to 3 of tests.stubs:Fragile-v0) ")
        assert all(word in failure for word in words)
        pool.send(nothing)
        np.testing.assert_array_equal(pool.recv().frames[:, 1], [5, 5, 1, 1])
        assert len(pool.failures) == 1


@pytest.mark.parametrize(
    ("env_id", "cause"),
    [("Raises-v0", "the stub broke"), ("Hangs-v0", "_sleep_forever"), ("HangsInReset-v0", "_sleep_forever")],
)
def test_a_fault_that_comes_always_ends_the_pool_with_its_first_cause(
    env_id: str, cause: str, supervisor: Supervise
) -> None:
    """Each life lasts 20 steps; two restarts, so the third failure in a row is one too many."""
    with pool_of(env_id, restarts=2, deadline=1.5, supervisor=supervisor) as pool:
        pool.reset()
        ticks = 0

        def play() -> None:
            nonlocal ticks
            while ticks < 1_000:
                pool.send(np.zeros(4, np.int64))
                pool.recv()
                ticks += 1

        with pytest.raises(WorkerError, match=rf"(?s)worker \d .* failed 3 times in a row; the first time .*{cause}"):
            play()
        assert 60 <= ticks < 70
        assert len(pool.failures) in (4, 5), "both workers were replaced twice before"
        with pytest.raises(RuntimeError, match="closed"):
            pool.reset()


def test_a_worker_whose_successors_cannot_start_ends_the_pool_with_the_first_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUB_DIRECTORY", str(tmp_path))
    spec = env_spec("tests.stubs:OneLife-v0", NATURE, 4)
    with WorkerPool(spec, NATURE, num_workers=2, envs_per_worker=1, seed=1, restarts=2) as pool:
        pool.reset()
        os.kill(pids(pool)[0], signal.SIGKILL)
        pool.send(np.zeros(2, np.int64))
        with pytest.raises(WorkerError, match=r"worker 0 .* 3 times in a row; the first time it was killed"):
            pool.recv()
        assert ["killed by SIGKILL" in line or "FileExistsError" in line for line in pool.failures] == [True, True]


def test_a_worker_that_cannot_be_started_again_ends_the_pool_without_a_traceback() -> None:
    """No file descriptor is left for its pipes."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pool_of("Lives-v0", restarts=2) as pool:
        pool.reset()
        os.kill(pids(pool)[0], signal.SIGKILL)
        pool.send(np.zeros(4, np.int64))
        free = os.open(os.devnull, os.O_RDONLY)  # the lowest that is
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        try:
            with pytest.raises(WorkerError, match=r"worker 0 .* 3 times in a row; the first time it was killed"):
                pool.recv()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert "cannot be started: [Errno 24]" in pool.failures[1]


def test_a_death_is_seen_at_once_though_an_envs_own_forked_process_holds_the_pipes(supervisor: Supervise) -> None:
    with pool_of("Forks-v0", deadline=20, supervisor=supervisor) as pool:
        pool.reset()
        pid = pids(pool)[1]
        os.kill(pid, signal.SIGSTOP)
        pool.send(np.zeros(4, np.int64))
        os.kill(pid, signal.SIGKILL)
        pool.recv()
        (failure,) = pool.failures
        said = heard(failure, supervisor)
        assert said == "worker 1 (envs 2 to 3 of tests.stubs:Forks-v0) was killed by SIGKILL"


def test_a_stack_sent_too_late_is_not_taken_for_anothers() -> None:
    with pool_of("Fragile-v0", deadline=1.5) as pool:
        pool.reset()
        assert isinstance(pool._supervisor, LocalSupervisor)
        os.write(pool._supervisor.tracebacks.writer.fileno(), b"a former worker's stack")
        pool.send(np.array([0, 0, Fragile.FAULTS.index("hang"), 0]))
        pool.recv()
        (failure,) = pool.failures
        assert "_sleep_forever" in failure
        assert "former" not in failure


def test_failures_far_apart_are_forgiven(supervisor: Supervise) -> None:
    with pool_of("Lives-v0", restarts=1, supervisor=supervisor) as pool:
        pool.reset()
        for _ in range(3):
            os.kill(pids(pool)[0], signal.SIGKILL)
            for _ in range(FORGIVE_TICKS + 2):
                pool.send(np.zeros(4, np.int64))
                pool.recv()
        assert len(pool.failures) == 3


def test_two_workers_that_fail_at_once_are_both_replaced(supervisor: Supervise) -> None:
    with pool_of("Lives-v0", supervisor=supervisor) as pool:
        pool.reset()
        first = pids(pool)
        for pid in first:
            os.kill(pid, signal.SIGSTOP)
        pool.send(np.zeros(4, np.int64))
        for pid in first:
            os.kill(pid, signal.SIGKILL)
        assert pool.recv().is_reset.all()
        assert len(pool.failures) == 2
        pool.send(np.zeros(4, np.int64))
        result = pool.recv()
        np.testing.assert_array_equal(result.frames[:, 2], 1)
        assert set(result.frames[:, 0]) == set(map(float, pids(pool)))


def test_a_replaced_workers_envs_play_other_games_and_the_same_in_every_repetition(supervisor: Supervise) -> None:
    def games(supervisor: Supervise = LocalSupervisor) -> list[np.ndarray]:
        with pool_of("Numbered-v0", supervisor=supervisor) as pool:
            first = pool.reset().frames.copy()
            pid = pids(pool)[1]
            os.kill(pid, signal.SIGSTOP)
            pool.send(np.zeros(4, np.int64))
            os.kill(pid, signal.SIGKILL)
            return [first, pool.recv().frames.copy()]

    first, after = games()
    assert (first[2:, 2] != after[2:, 2]).all(), "a random number of the env's own"
    for one, other in zip(games(supervisor), (first, after), strict=True):
        np.testing.assert_array_equal(one, other)
