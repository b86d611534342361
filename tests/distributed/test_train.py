"""Tests of `train --cluster`, each a process of its own."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from atari_dqn.runs.checkpoints import CheckpointStore
from tests.faults.trainings import training
from tests.ray_nodes import LIMIT, Nodes, is_gone, processes_of, until
from tests.test_train import SHORT, run

pytestmark = pytest.mark.ray
EXACT = [*SHORT, "--deterministic", "--run-dir"]
ENDLESS = [*SHORT, "--run-dir", "run", "--total-env-steps", "100000000", "--cluster"]


def weights(run_dir: Path) -> bytes:
    newest, _ = CheckpointStore(run_dir).newest_valid()
    assert newest is not None
    return (newest / "learner.safetensors").read_bytes()


def test_a_run_on_a_cluster_of_this_machine_ends_as_one_without(tmp_path: Path) -> None:
    """Its weights, its resume without a cluster, and its output, in which Ray has no say."""
    ends = []
    for total in ("1000", "1400"):
        ended = run([*EXACT, "here", "--total-env-steps", total], tmp_path)
        assert ended.returncode == 0, ended.stderr
        ends.append(weights(tmp_path / "here"))
    ended = run([*EXACT, "there", "--total-env-steps", "1000", "--cluster", "local"], tmp_path, timeout=LIMIT)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "1 nodes; free CPUs: " in ended.stdout
    assert "ray" not in ended.stdout.lower().replace("array", "")
    assert weights(tmp_path / "there") == ends[0]
    ended = run([*EXACT, "there", "--total-env-steps", "1400"], tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert weights(tmp_path / "there") == ends[1]


def test_too_few_cpus_are_refused_in_one_line(nodes: Nodes, tmp_path: Path) -> None:
    ended = run([*SHORT, "--cluster", nodes.address, "--num-workers", "14", "--envs-per-worker", "2"], tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: --num-workers 14: the cluster has 12 free CPUs (")
    assert ended.stderr.endswith("; try --num-workers 7 --envs-per-worker 4, or more nodes\n")
    assert not [*tmp_path.iterdir()], "nothing is left"


def test_no_process_outlives_a_killed_trainer(nodes: Nodes, tmp_path: Path) -> None:
    with training(tmp_path, [*ENDLESS, nodes.address]) as harmed:
        harmed.until(harmed.rows, LIMIT)
        running = [process for node in nodes.cluster.list_all_nodes() for process in processes_of(node)]
        actors = [process for process in running if "ray::NodeWork" in process.name()]
        family = [each for actor in actors for each in (actor, *actor.children(recursive=True))]
        assert len(family) >= 4
        harmed.signal(signal.SIGKILL)
        harmed.process.wait()
        until(lambda: all(map(is_gone, family)))


def test_nothing_outlives_a_killed_trainer_that_started_ray_itself(tmp_path: Path) -> None:
    with training(tmp_path, [*ENDLESS, "local"]) as harmed:
        harmed.until(harmed.rows, LIMIT)
        family = harmed.helpers("")
        assert any("gcs_server" in process.name() for process in family)
        harmed.signal(signal.SIGKILL)
        harmed.process.wait()
        until(lambda: all(map(is_gone, family)))


def test_a_lost_head_ends_the_run_with_its_state_saved(tmp_path: Path) -> None:
    nodes = Nodes(2, 2)
    try:
        with training(tmp_path, [*ENDLESS, nodes.address, "--worker-deadline", "5"]) as harmed:
            harmed.until(harmed.rows, LIMIT)
            nodes.kill(nodes.head)
            assert harmed.process.wait(LIMIT) == 1
            assert "error: lost the Ray cluster at" in harmed.said
            assert "run can be resumed from its newest checkpoint" in harmed.said
    finally:
        nodes.close()
    ended = run([*SHORT, "--run-dir", "run", "--total-env-steps", "100"], tmp_path)
    assert "nothing left to do" in ended.stdout
