"""`sweep --cluster`: members as trials of Ray Tune, on a cluster of several nodes on this machine."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from atari_dqn.cli.command import BAD_INPUT, DONE, FAILED, INTERRUPTED
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.runs.checkpoints import load_weights
from atari_dqn.runs.lock import is_training, locked
from atari_dqn.sweeps.members import Member, cores_for, last_line, progress
from atari_dqn.sweeps.plan import HIDDEN, OnRay, Plan
from tests.faults.trainings import training
from tests.ray_nodes import Nodes
from tests.test_train import run

pytestmark = pytest.mark.ray

SWEEP = [sys.executable, "-m", "atari_dqn.sweep"]
COMMON = [
    *("--num-workers", "1", "--envs-per-worker", "2", "--replay-capacity", "1024", "--learning-starts", "100"),
    *("--batch-size", "8", "--log-interval", "100", "--checkpoint-interval", "200", "--deterministic"),
    *("--torch-threads", "1", "--epsilon-values", "1", "0.1", "--epsilon-at", "0", "1"),
]
LIMIT = 1800.0
"""Seconds after which what should have happened hangs."""


def alone(place: Path, *flags: str) -> dict[str, Any]:
    """Weights of a run made by `train`."""
    result = run(
        [sys.executable, "-m", "atari_dqn.train", "--preset", "paper", *COMMON, *flags, "--run-dir", "alone"],
        place,
        LIMIT,
    )
    assert result.returncode == DONE, result.stdout + result.stderr
    return load_weights(place / "alone")


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)


def test_runs_on_a_cluster_are_ordinary_runs_with_the_weights_of_runs_made_alone(nodes: Nodes, tmp_path: Path) -> None:
    flags = ["--env-id", "CartPole-v1", "--total-env-steps", "600"]
    grid = ["--n-step", "1", "3", "--cluster", nodes.address, "--sweep-dir", "swept"]
    result = run([*SWEEP, *COMMON, *flags, *grid], tmp_path, LIMIT)
    assert result.returncode == DONE, result.stdout + result.stderr
    assert "CartPole-v1-n_step-3 seed 1 done" in result.stdout.splitlines()
    assert " nodes; 2 cores, 0 GPUs and 1.2 GB for each run\n" in result.stdout
    assert "Traceback" not in result.stdout + result.stderr
    swept = tmp_path / "swept"
    assert sorted(path.name for path in swept.iterdir()) == [
        *(".lock", ".sweep", "CartPole-v1-n_step-1", "CartPole-v1-n_step-3"),
    ]
    assert same(load_weights(swept / "CartPole-v1-n_step-3/seed-1"), alone(tmp_path, *flags, "--n-step", "3"))

    again = run([*SWEEP, "--sweep-dir", "swept"], tmp_path, LIMIT)
    assert again.returncode == DONE
    assert "2 of 2 runs are done already" in again.stdout
    assert "connecting" not in again.stdout


def shell(place: Path, program: str) -> Any:
    """A member whose process runs `program` in place of a training."""
    from atari_dqn.sweeps.trial import Subprocess

    return Subprocess(Member("a/seed-1", TrainConfig()), place, [sys.executable, "-c", program], None)


def test_a_trial_waits_until_the_former_process_of_its_run_has_saved(tmp_path: Path) -> None:
    """After its node or its actor was lost that one may take a while, and two must never train in one directory."""
    process = shell(tmp_path, "")
    with locked(tmp_path / "a/seed-1"):
        assert process.look(stopping=False, seconds=0.1) == ("waiting", False)
        assert process.look(stopping=False, seconds=0.1) == ("waiting", False)
    assert process.look(stopping=False, seconds=60) == ("done", True)


def test_a_trial_that_fails_says_why_and_one_that_is_asked_to_stop_is_waited_for(tmp_path: Path) -> None:
    failing = shell(tmp_path, "import sys; print('error: no room'); sys.exit(1)")
    with pytest.raises(RuntimeError, match=r"^exit code 1: error: no room \(see .*output-1.txt\)$"):
        failing.look(stopping=False, seconds=60)
    # It saves until a file appears.
    saving = shell(
        tmp_path,
        "import os, pathlib, signal, sys, time; asked = []\nsignal.signal(signal.SIGTERM, lambda *_:"
        " os._exit(143) if asked else asked.append(1)); print('ready', flush=True)\n"
        f"while not (asked and pathlib.Path({str(tmp_path / 'saved')!r}).exists()): time.sleep(0.01)\nsys.exit(3)",
    )
    while "ready" not in last_line(tmp_path / "a/output-1.txt"):
        assert saving.look(stopping=False, seconds=0.05) == ("running", False)
    assert saving.look(stopping=True, seconds=0.05) == ("saving", False)
    waiting = threading.Thread(target=saving.stop)  # as when Tune stops the trial meanwhile
    waiting.start()
    (tmp_path / "saved").touch()
    assert saving.look(stopping=True, seconds=60) == ("stopped", False)
    waiting.join()
    never = shell(tmp_path, "")
    assert never.look(stopping=True, seconds=0.01) == ("stopped", False)
    assert never._process is None


def test_too_many_cores_for_every_node_are_one_line(nodes: Nodes, tmp_path: Path) -> None:
    command = [*SWEEP, *COMMON, "--sweep-dir", "swept", "--cluster", nodes.address, "--cpus-per-run", "99"]
    result = run(command, tmp_path, LIMIT)
    assert result.returncode == BAD_INPUT, result.stdout + result.stderr
    assert result.stderr.startswith("error: no node has the 99 cores, 0 GPUs and 1.2 GB that a run needs (4 cores, 0 ")
    assert not list(tmp_path.iterdir())


def test_a_stop_before_any_run_started_is_obeyed_at_once(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "search.toml").write_text("[search]\nn_step = [1, 3]\n")
    search = ["--file", "search.toml", "--search", "optuna", "--trials", "2", "--cluster", nodes.address]
    command = [*SWEEP, *COMMON, "--env-id", "CartPole-v1", "--sweep-dir", "run", *search]
    with training(tmp_path, command) as sweep:
        sweep.until(lambda: "connecting to the cluster" in sweep.said)
        sweep.signal(signal.SIGINT, group=True)
        assert sweep.end(300, 60) == INTERRUPTED, sweep.said
    assert sweep.said.splitlines()[-1] == "stopped, nothing to save; resume with --sweep-dir run"


def test_a_folder_that_a_node_does_not_share_is_refused(nodes: Nodes, tmp_path: Path) -> None:
    """Every process has a folder of its own at this path: its working directory."""
    (tmp_path / "here").mkdir()
    command = [*SWEEP, "--env-id", "CartPole-v1", "--cluster", nodes.address, "--sweep-dir", "/proc/self/cwd/swept"]
    result = run(command, tmp_path / "here", LIMIT)
    assert result.returncode == BAD_INPUT, result.stdout + result.stderr
    assert re.fullmatch(
        r"error: --cluster: node \S+ \(\S+\) sees another folder as --sweep-dir /proc/self/cwd/swept; choose .*\n",
        result.stderr,
    )


def test_what_is_reserved_for_a_run_is_on_one_node() -> None:
    """The most cores may be on a node without a GPU."""
    from atari_dqn.sweeps.driver import resources

    members = [Member("a/seed-1", TrainConfig())]  # eight workers
    nodes = [{"Resources": {"CPU": cpus, "GPU": gpus, "memory": 8e9}} for cpus, gpus in ((64, 0), (4, 1))]
    request = {"memory": {"a/seed-1": 1e9}}
    assert resources(OnRay("auto", gpus_per_run=0.5), members, request, nodes) == {"cpu": 4, "gpu": 0.5, "memory": 1e9}
    assert resources(OnRay("auto"), members, request, nodes)["cpu"] == cores_for(TrainConfig(), on_gpu=False)
    with pytest.raises(
        ConfigError, match=r"^no node has the 9 cores, 1 GPUs and 1.0 GB that a run needs \(64 cores, 0"
    ):
        resources(OnRay("auto", cpus_per_run=9, gpus_per_run=1), members, request, nodes)


def test_a_trial_refuses_a_node_that_joined_without_the_folder_or_with_other_versions(tmp_path: Path) -> None:
    from atari_dqn.sweeps.driver import share
    from atari_dqn.sweeps.trial import node_fault

    for name in ("ours", "theirs"):
        (tmp_path / name / HIDDEN).mkdir(parents=True)
    shared = share(Plan([Member("a/seed-1", TrainConfig())]), tmp_path / "ours")
    assert "ROM of breakout" in shared["versions"]
    assert node_fault(shared) == ""
    assert node_fault(shared | {"root": str(tmp_path / "theirs")}).startswith("sees another folder as --sweep-dir ")
    share(Plan([Member("a/seed-1", TrainConfig())]), tmp_path / "theirs")  # another sweep's
    assert node_fault(shared | {"root": str(tmp_path / "theirs")}).startswith("sees another folder as --sweep-dir ")
    other = shared | {"versions": shared["versions"] | {"torch": "0.1"}}
    assert re.fullmatch(r"has torch \S+ instead of 0.1; install the same on all nodes", node_fault(other))


def test_runs_on_a_late_node_with_other_versions_fail_by_name(tmp_path: Path) -> None:
    metadata = tmp_path / "other" / "ale_py-0.0.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: ale-py\nVersion: 0.0.1\n")
    flags = ["--env-id", "CartPole-v1", "--total-env-steps", "800", "--seeds", "3", "--cpus-per-run", "1"]
    nodes = Nodes(1)
    try:
        where = ["--cluster", nodes.address, "--sweep-dir", "run", "--retries", "0"]
        with training(tmp_path, [*SWEEP, *COMMON, *flags, *where]) as sweep:
            sweep.until(lambda: "seed 1 started" in sweep.said, LIMIT)
            nodes.add(1, env_vars={"PYTHONPATH": f"{metadata.parents[1]}:{Path(__file__).parents[2]}"})
            assert sweep.end(LIMIT, 60) == FAILED, sweep.said
    finally:
        nodes.close()
    assert re.search(r"CartPole-v1 seed 2 failed: node \S+ has ale-py 0.0.1 instead of ", sweep.said), sweep.said
    assert "CartPole-v1 seed 1 done" in sweep.said


def test_a_run_that_is_done_elsewhere_failed(tmp_path: Path) -> None:
    """The board believes what nodes report; what counts is the checkpoint in the sweep's folder."""
    from rich.console import Console

    from atari_dqn.sweeps.on_ray import believe_checkpoints
    from atari_dqn.sweeps.table import Board

    members = [Member(f"a/seed-{seed}", TrainConfig().replace(seed=seed)) for seed in (1, 2)]
    (tmp_path / "a/seed-1/checkpoints/100").mkdir(parents=True)
    board = Board(Console(quiet=True), members)
    for line, state in zip(board.lines.values(), ("done", "done"), strict=True):
        line.state = state
    believe_checkpoints(board, tmp_path)
    assert [line.state for line in board.lines.values()] == ["done", "failed"]


@pytest.mark.slow
def test_a_search_draws_settings_and_stops_hopeless_ones(tmp_path: Path) -> None:
    (tmp_path / "search.toml").write_text(
        "[search]\nlearning_rate = {low = 1e-5, high = 1e-2, log = true}\nn_step = {low = 1, high = 3}\n"
        'optimizer = ["adam", "adamw"]\n'
    )
    flags = ["--env-id", "CartPole-v1", "--total-env-steps", "900", "--file", "search.toml", "--search", "optuna"]
    more = ["--trials", "4", "--stop-early", "--cluster", "local", "--cpus-per-run", "1", "--sweep-dir", "swept"]
    result = run([*SWEEP, *COMMON, *flags, *more], tmp_path, LIMIT)
    assert result.returncode == DONE, result.stdout + result.stderr
    found = list((tmp_path / "swept").glob("CartPole-v1-trial-*/seed-1"))
    assert len(found) == 4
    ended = re.findall(r"trial-\w+ seed 1 (done|stopped early)$", result.stdout, re.MULTILINE)
    assert len(ended) == 4
    again = run([*SWEEP, "--sweep-dir", "swept"], tmp_path, LIMIT)
    assert again.returncode == DONE, again.stdout + again.stderr
    assert len(list((tmp_path / "swept").glob("CartPole-v1-trial-*"))) == 4


@pytest.mark.slow
def test_a_sweep_survives_a_killed_node_a_killed_head_and_ctrl_c(tmp_path: Path) -> None:
    """Two games, two seeds and two settings; in the end all have the weights of runs made alone."""
    flags = ["--env-id", "CartPole-v1", "breakout", "--seeds", "2", "--n-step", "1", "3", "--total-env-steps", "800"]
    where = ["--sweep-dir", "run", "--cpus-per-run", "1", "--retries", "5"]
    names = [
        f"{game}-n_step-{n_step}/seed-{seed}"
        for game in ("CartPole-v1", "Breakout")
        for n_step in (1, 3)
        for seed in (1, 2)
    ]

    def steps() -> int:
        """Env steps of all runs."""
        return sum(progress(tmp_path / "run" / name).env_step for name in names)

    def more_than(before: int) -> Callable[[], bool]:
        return lambda: steps() > before

    def nobody_trains() -> bool:
        return not any(is_training(tmp_path / "run" / name) for name in names)

    nodes = Nodes(2, 2)
    try:
        with training(tmp_path, [*SWEEP, *COMMON, *flags, *where, "--cluster", nodes.address]) as sweep:
            sweep.until(more_than(500), LIMIT)
            nodes.kill(str(nodes.cluster.list_all_nodes()[1].node_id))
            nodes.add(2)
            sweep.until(lambda: "failed, and is tried again" in sweep.said, LIMIT)
            sweep.until(more_than(steps() + 300), LIMIT)
            nodes.kill(nodes.head)
            assert sweep.end(LIMIT, 60) == FAILED, sweep.said
        assert "the cluster's head was lost" in sweep.said
        assert "Traceback" not in sweep.said
    finally:
        nodes.close()
    deadline = time.monotonic() + LIMIT
    while not nobody_trains():
        assert time.monotonic() < deadline, "an orphan"
        time.sleep(0.5)

    nodes = Nodes(2, 2)
    try:
        before = steps()
        with training(tmp_path, [*SWEEP, "--sweep-dir", "run", "--cluster", nodes.address]) as sweep:
            sweep.until(more_than(before + 300), LIMIT)
            sweep.signal(signal.SIGINT, group=True)
            assert sweep.end(LIMIT, 60) == INTERRUPTED, sweep.said
        assert "stopped, state saved; resume with --sweep-dir run" in sweep.said
        assert nobody_trains()
        saved = [(tmp_path / "run" / name).parent / f"output-{name[-1]}.txt" for name in names]
        assert any("state saved" in file.read_text() for file in saved if file.exists())
        result = run([*SWEEP, "--sweep-dir", "run", "--cluster", nodes.address], tmp_path, LIMIT)
        assert result.returncode == DONE, result.stdout + result.stderr
    finally:
        nodes.close()
    for index, name in enumerate(names):
        (tmp_path / str(index)).mkdir()
        game, n_step = name.split("/")[0].rsplit("-n_step-")
        weights = alone(
            tmp_path / str(index),
            *("--env-id", game, "--n-step", n_step, "--seed", name[-1], "--total-env-steps", "800"),
        )
        assert same(load_weights(tmp_path / "run" / name), weights), name
    assert not [each for each in psutil.process_iter() if str(tmp_path) in " ".join(_words(each))]


def _words(process: psutil.Process) -> list[str]:
    with contextlib.suppress(psutil.Error):
        return process.cmdline()
    return []
