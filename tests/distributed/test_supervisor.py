"""Tests of workers on nodes: the same bits as on one machine, and what becomes of the share of a node that is lost."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from atari_dqn.config.schema import TrainConfig
from atari_dqn.distributed.assembly import cluster_parts
from atari_dqn.distributed.cluster import Cluster, Node
from atari_dqn.distributed.supervisor import ClusterSupervisor
from atari_dqn.envs.make import env_spec, spec_of
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.training.assembly import local_parts
from atari_dqn.training.snapshot import resume, save
from atari_dqn.training.trainer import Trainer
from atari_dqn.workers.pool import WorkerError, WorkerPool
from atari_dqn.workers.supervisor import START_DEADLINE
from tests.faults.test_exact_resume import SMALL, digest
from tests.faults.test_workers import NATURE, check_that_lives_are_apart, iterate, trainer_of
from tests.ray_nodes import Nodes, actor_pids, all_free, processes_of, until
from tests.stubs import pids

pytestmark = pytest.mark.ray


class One(Cluster):
    """A cluster of which only one node is used."""

    def __init__(self, whole: Cluster) -> None:
        vars(self).update(vars(whole))

    def usable(self) -> dict[str, Node]:
        id, node = next(iter(super().usable().items()))
        return {id: node}


@contextlib.contextmanager
def training(cluster: Cluster | None, store: CheckpointStore | None = None, **settings: Any) -> Iterator[Trainer]:
    """A started deterministic trainer of 4 workers on this machine or on a cluster, resumed from `store` if given."""
    if cluster is not None:
        until(lambda: all_free(cluster))
    config = TrainConfig().replace(**(SMALL | {"num_workers": 4} | settings)).validate()
    spec = spec_of(config.env)
    trainer = Trainer(config, spec, cluster_parts(cluster, config, spec) if cluster else local_parts(config, spec))
    try:
        if store is not None:
            assert resume(trainer, store).notes == []
        trainer.start()
        yield trainer
    finally:
        trainer.close()


CARTPOLE: dict[str, Any] = {
    "env_id": "CartPole-v1",
    "mlp_hidden": (16,),
    "learning_starts": 60,
    "replay_ratio": 8.0,
    "n_step": 3,
}


@pytest.mark.parametrize(
    ("updates", "settings"),
    [
        pytest.param(300, CARTPOLE, id="cartpole"),
        pytest.param(100, {"envs_per_worker": 1, "replay_ratio": 4.0, "learning_starts": 60}, id="breakout"),
        pytest.param(2000, {"replay_ratio": 4.0}, id="breakout, 2,000 updates", marks=pytest.mark.slow),
    ],
)
def test_a_run_has_the_same_bits_on_one_machine_one_node_and_three(
    updates: int, settings: dict[str, Any], cluster: Cluster
) -> None:
    found = []
    for where, nodes in ((None, 0), (One(cluster), 1), (cluster, 3)):
        with training(where, **settings) as trainer:
            while trainer.learner.updates < updates:
                trainer.iterate()
            found.append(digest(trainer))
            assert trainer.workers is not None
            assert not trainer.workers.failures
            if where is not None:
                assert len(trainer.workers._supervisor.shares) == nodes  # type: ignore[attr-defined]
    assert found[0] == found[1] == found[2]


def test_a_run_is_resumed_exactly_on_a_cluster_and_back_on_one_machine(cluster: Cluster, tmp_path: Path) -> None:
    stores = [CheckpointStore(tmp_path / name) for name in ("first", "second")]
    settings: dict[str, Any] = {"envs_per_worker": 1, "learning_starts": 60}
    with training(None, **settings) as whole:
        for _ in range(180):
            whole.iterate()
        expected = digest(whole)
    before: CheckpointStore | None = None
    for where, after in ((cluster, stores[0]), (None, stores[1]), (One(cluster), None)):
        with training(where, before, **settings) as part:
            for _ in range(60):
                part.iterate()
            if after is None:
                assert digest(part) == expected
            else:
                save(part, after)
        before = after


def pool_of(cluster: Cluster, env_id: str = "Lives-v0", **settings: Any) -> WorkerPool:
    """Three workers of one environment, one on each node."""
    until(lambda: all_free(cluster))
    spec = env_spec(f"tests.stubs:{env_id}", NATURE, 4)
    given: dict[str, Any] = {"num_workers": 3, "envs_per_worker": 1, "seed": 1, "restarts": 5, "deadline": 60.0}
    return WorkerPool(spec, NATURE, supervisor=partial(ClusterSupervisor, cluster), **(given | settings))


def step(pool: WorkerPool) -> Any:
    pool.send(np.zeros(pool.num_envs, np.int64))
    return pool.recv()


def victim(pool: Any, nodes: Nodes) -> Any:
    """A share that is not on the head's node."""
    return next(share for share in pool._supervisor.shares if share.node.id != nodes.head)


@contextlib.contextmanager
def no_cpu_free(cluster: Cluster, *only: str) -> Iterator[None]:
    """Somebody else takes all CPUs that are left, or only those of some nodes."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    class Other:
        def ready(self) -> None:
            pass

    taken = [
        ray.remote(Other).options(num_cpus=cpus, scheduling_strategy=NodeAffinitySchedulingStrategy(id, soft=False))
        for id, cpus in cluster.free(cluster.usable()).items()
        if cpus and (not only or id in only)
    ]
    others: list[Any] = [each.remote() for each in taken]
    ray.get([other.ready.remote() for other in others])
    yield
    for other in others:
        ray.kill(other)


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_no_transition_joins_two_lives_where_a_node_is_killed_in_mid_step(
    kills: int, cluster: Cluster, nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A node that has just joined a busy machine may take longer to start workers, and would be named as well.
    monkeypatch.setattr("atari_dqn.workers.supervisor.START_DEADLINE", 10 * START_DEADLINE)
    until(lambda: all_free(cluster))
    with contextlib.ExitStack() as stack:
        stack.enter_context(no_cpu_free(cluster, nodes.head))
        trainer = trainer_of("tests.stubs:Lives-v0", partial(ClusterSupervisor, cluster), worker_restarts=kills)
        stack.callback(trainer.close)
        trainer.start()
        for _ in range(30):
            iterate(trainer)
        for _ in range(kills):
            pool: Any = trainer.workers
            share = victim(pool, nodes)
            first = share.workers[0]
            os.kill(pids(trainer)[first], signal.SIGSTOP)  # or it might be done by then
            actions = trainer.actor.act(trainer.replay.latest_observation(), 0.5)
            pool.send(actions)
            nodes.kill(share.node.id)
            trainer.observe(actions, pool.recv())
            assert f"worker {first} " in pool.failures[0] or f"workers {first} to" in pool.failures[0]
            for _ in range(20):
                iterate(trainer)
            for failure in pool.failures:  # another share of the node may have done its step before
                assert f" of tests.stubs:Lives-v0) went down with node {share.node.name}: " in failure
            pool.failures.clear()
            assert share.node.id not in {each.node.id for each in pool._supervisor.shares}
            lives = check_that_lives_are_apart(trainer)
            nodes.add(4)
        assert lives > kills // 2


def test_a_node_that_hangs_is_named_and_its_processes_are_ended(cluster: Cluster) -> None:
    heard: list[str] = []
    with pool_of(cluster, deadline=1.5, on_wait=heard.append) as pool:
        pool.reset()
        share = pool._supervisor.shares[1]  # type: ignore[attr-defined]
        pid, worker = actor_pids(pool)[share.node.id], pids(pool)[share.workers[0]]
        os.kill(pid, signal.SIGSTOP)
        np.testing.assert_array_equal(step(pool).is_reset, [False, True, False])
        (failure,) = pool.failures
        assert f"went down with node {share.node.name}: it has not answered for 1.5 s and hangs" in failure
        assert any(line.startswith(f"node {share.node.name} has not answered for ") for line in heard)
        until(lambda: not psutil.pid_exists(pid) and not psutil.pid_exists(worker))
        np.testing.assert_array_equal(step(pool).frames[:, 2], [2, 1, 2])


def test_a_lost_share_waits_for_a_node_that_joins_late(cluster: Cluster, nodes: Nodes) -> None:
    joined: list[Any] = []
    named: list[str] = []

    def on_wait(line: str) -> None:
        if "1 workers wait for as many free CPUs, at most 300 s: 0 on 2 nodes" in line and not joined:
            joined.append(nodes.add(4))
            named.extend(pool.failures)

    with pool_of(cluster, deadline=300, on_wait=on_wait) as pool, no_cpu_free(cluster):
        pool.reset()
        share = victim(pool, nodes)
        nodes.kill(share.node.id)
        assert step(pool).is_reset.tolist() == [index in share.workers for index in range(3)]
        moved = next(each for each in pool._supervisor.shares if each.workers == share.workers)  # type: ignore[attr-defined]
        assert moved.node.id == joined[0].node_id
        assert f"went down with node {share.node.name}: " in named[0], "before its workers have another"


def test_without_a_free_cpu_a_lost_share_goes_to_the_least_busy_node(cluster: Cluster, nodes: Nodes) -> None:
    with pool_of(cluster, deadline=1.5) as pool, no_cpu_free(cluster):
        pool.reset()
        share = victim(pool, nodes)
        nodes.kill(share.node.id)
        assert step(pool).is_reset.tolist() == [index in share.workers for index in range(3)]
        shares = pool._supervisor.shares  # type: ignore[attr-defined]
        assert len(shares) == 3
        assert len({each.node.id for each in shares}) == 2
        assert step(pool).frames[share.envs, 2].tolist() == [1]
    nodes.add(4)


def test_an_env_that_a_node_cannot_make_ends_the_start_by_name(cluster: Cluster) -> None:
    with pytest.raises(WorkerError, match=r"(?s)worker \d \(env \d of \S+\) on node \S+ \(\w{6}\) failed.*no licence"):
        pool_of(cluster, "Unmakeable-v0")


def test_nothing_is_left_on_any_node_when_the_pool_is_closed(cluster: Cluster) -> None:
    with pool_of(cluster) as pool:
        pool.reset()
        left = [*actor_pids(pool).values(), *pids(pool)]
        assert len(left) > 3
    until(lambda: not any(map(psutil.pid_exists, left)))
    with pytest.raises(RuntimeError, match="closed"):
        pool.reset()


@pytest.mark.slow
def test_a_frozen_node_is_replaced_and_ends_when_it_thaws(cluster: Cluster, nodes: Nodes) -> None:
    """As one whose network is cut: nothing of it answers, and Ray takes half a minute to notice."""
    with pool_of(cluster, deadline=1.5) as pool:
        pool.reset()
        share = victim(pool, nodes)
        frozen = processes_of(nodes.of(share.node.id))
        ours = [actor_pids(pool)[share.node.id], *(pids(pool)[index] for index in share.workers)]
        for process in frozen:
            process.suspend()
        assert step(pool).is_reset.tolist() == [index in share.workers for index in range(3)]
        until(lambda: share.node.id not in cluster.nodes())
        for process in frozen:
            process.resume()
        until(lambda: not any(map(psutil.pid_exists, ours)))
    for process in frozen:  # idle ones of Ray's own live on
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    nodes.kill(share.node.id)
    nodes.add(4)
