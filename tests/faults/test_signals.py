"""SIGINT, SIGTERM and SIGKILL to a training, in each of its phases."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from atari_dqn.runs.checkpoints import CheckpointStore
from tests.faults.trainings import ENDLESS, LIMIT, Harmed, training
from tests.test_train import SHORT, run

WAITING = [*ENDLESS, "--env-id", "tests.stubs:LateHang-v0", "--log-interval", "4"]
"""For workers that hang after 20 steps."""
EVALUATING = ["--eval-interval", "200", "--eval-episodes", "100000"]


def listens(harmed: Harmed) -> bool:
    """Whether it has a handler for SIGTERM: from here on it is our code that decides."""
    (caught,) = (line for line in status(harmed) if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def status(harmed: Harmed) -> list[str]:
    return Path(f"/proc/{harmed.process.pid}/status").read_text().splitlines()


def loads(harmed: Harmed) -> bool:
    return "beta" in harmed.said


def starts_workers(harmed: Harmed) -> bool:
    return bool(harmed.helpers())


def plays(harmed: Harmed) -> bool:
    return bool(harmed.rows())


def learns(harmed: Harmed) -> bool:
    return any("losses/td_loss" in row for row in harmed.rows())


def evaluates(harmed: Harmed) -> bool:
    return len(harmed.helpers()) > 2


def saves(harmed: Harmed) -> bool:
    """Leaves it stopped in the middle of a save."""
    harmed.process.send_signal(signal.SIGSTOP)
    if any((harmed.run_dir / "checkpoints").glob(".*.partial")):
        return True
    harmed.process.send_signal(signal.SIGCONT)
    return False


def waits(harmed: Harmed) -> bool:
    """Whether all 4 envs of `WAITING` have come so far that their next step hangs."""
    return any(row["env_step"] >= 80 for row in harmed.rows())


def check_stopped(harmed: Harmed, words: str) -> None:
    """It ended as a training that was asked to, and told so in one line: in these words, or in those of a later phase,
    for on a crowded machine it has moved on before the request reaches it.
    """
    stages = ["interrupted", "nothing to save", "state saved"]
    assert harmed.end() == 3, harmed.said
    told = [line for line in harmed.said.splitlines() if "stopped" in line or "interrupted" in line]
    assert len(told) == 1
    assert any(stage in told[0] for stage in stages[stages.index(words) :]), told
    assert "Traceback" not in harmed.said
    assert "Error" not in harmed.said


@pytest.mark.parametrize(
    ("phase", "flags", "words"),
    [
        (listens, [], "interrupted"),
        (loads, [], "interrupted"),
        pytest.param(starts_workers, [], "nothing to save", marks=pytest.mark.slow),
        pytest.param(plays, ["--learning-starts", "1000000"], "state saved", marks=pytest.mark.slow),
        pytest.param(learns, [], "state saved", marks=pytest.mark.slow),
        pytest.param(evaluates, EVALUATING, "state saved", marks=pytest.mark.slow),
        (saves, ["--checkpoint-interval", "1"], "state saved"),
    ],
)
def test_a_request_to_stop_is_obeyed_in_every_phase(
    phase: Callable[[Harmed], bool], flags: list[str], words: str, tmp_path: Path
) -> None:
    with training(tmp_path, [*ENDLESS, *flags]) as harmed:
        harmed.until(lambda: phase(harmed))
        harmed.signal(signal.SIGTERM)
        harmed.process.send_signal(signal.SIGCONT)
        check_stopped(harmed, words)
    if "state saved" in harmed.said:
        CheckpointStore(harmed.run_dir).find("latest")  # raises for a damaged one


def test_a_terminal_that_is_gone_stops_it_too(tmp_path: Path) -> None:
    """A lost connection: SIGHUP to all that the terminal had, which then refuses to be written to."""
    terminal, its_end = os.openpty()
    with (
        os.fdopen(its_end, "wb") as output,
        subprocess.Popen(
            [*ENDLESS, "--log-interval", "4"],
            cwd=tmp_path,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # ignored if the tests run under nohup
        ) as process,
    ):
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + LIMIT
        while not (metrics.exists() and "losses/td_loss" in metrics.read_text()):
            assert process.poll() is None
            assert time.monotonic() < deadline
            select.select([terminal], [], [], 0.05)[0] and os.read(terminal, 65536)
        output.close()
        os.close(terminal)
        while process.poll() is None:  # the shell sends one, the terminal another
            os.killpg(process.pid, signal.SIGHUP)
            time.sleep(0.01)
        assert process.wait() == 3
    CheckpointStore(tmp_path / "run").find("latest")


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(30))
def test_a_request_to_stop_is_obeyed_at_any_moment(moment: int, tmp_path: Path) -> None:
    """At a random one of the first seconds, in which all phases come by: evaluations and saves again and again."""
    flags = [*EVALUATING[:-1], "2", "--checkpoint-interval", "40"]
    with training(tmp_path, [*ENDLESS, *flags]) as harmed:
        harmed.until(lambda: listens(harmed))
        time.sleep(np.random.default_rng(moment).uniform(0, 8))
        harmed.signal(signal.SIGINT if moment % 2 else signal.SIGTERM, group=bool(moment % 2))
        check_stopped(harmed, "interrupted")
    if "state saved" in harmed.said:
        CheckpointStore(harmed.run_dir).find("latest")


def test_a_stop_does_not_wait_for_a_worker_that_hangs(tmp_path: Path) -> None:
    """Whose deadline is 60 s. What counts as silence is made short here; it is 5 s."""
    program = (
        "from atari_dqn.train import main\n"
        "from atari_dqn.cli.command import run_command\n"
        "from atari_dqn.workers import process\n"
        "process.QUIET = 0.5; run_command(main)"
    )
    with training(tmp_path, [sys.executable, "-c", program, *WAITING[3:]]) as harmed:
        harmed.until(lambda: waits(harmed))
        harmed.signal(signal.SIGINT, group=True)
        check_stopped(harmed, "state saved")


def test_a_second_ctrl_c_ends_it_at_once(tmp_path: Path) -> None:
    with training(tmp_path, WAITING) as harmed:
        harmed.until(lambda: waits(harmed))
        deadline = time.monotonic() + 4  # sooner than the first one alone would end it
        while harmed.process.poll() is None and time.monotonic() < deadline:
            harmed.signal(signal.SIGINT, group=True)  # two within a moment are one to the kernel, so press on
            time.sleep(0.2)
        assert harmed.end(seconds=0) == 128 + signal.SIGINT
        assert "Traceback" not in harmed.said


@pytest.mark.parametrize("env_id", [pytest.param("CartPole-v1", marks=pytest.mark.slow), "tests.stubs:LateSpin-v0"])
def test_nothing_outlives_a_killed_training_and_the_next_goes_on(env_id: str, tmp_path: Path) -> None:
    """The lock of the killed one does not stand in the way, either. In the second env its workers are busy for good."""
    flags = ["--env-id", env_id, "--checkpoint-interval", "80", "--log-interval", "4"]
    with training(tmp_path, [*ENDLESS, *flags]) as harmed:
        harmed.until(lambda: (harmed.run_dir / "checkpoints/latest").exists() and waits(harmed))
        harmed.signal(signal.SIGKILL)
        assert harmed.end() == -signal.SIGKILL
    steps = CheckpointStore(harmed.run_dir).steps()[-1]
    result = run([*SHORT, "--run-dir", "run", "--env-id", env_id, "--total-env-steps", str(steps)], tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"env step {steps:,}" in result.stdout


@pytest.mark.parametrize(
    ("phase", "number"),
    [
        pytest.param("starts", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("runs", signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param("starts", signal.SIGKILL, marks=pytest.mark.slow),
        ("runs", signal.SIGKILL),
    ],
)
def test_the_dashboard_goes_with_the_training(
    phase: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which has begun it; so does the process that reports to it."""
    pytest.importorskip("labml_app")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    program = "from atari_dqn.train import main; from atari_dqn.labml import launch;"
    program += " from atari_dqn.cli.command import run_command;"
    program += f" launch.PORT = {port}; run_command(main)"
    with training(tmp_path, [sys.executable, "-c", program, *ENDLESS[3:], "--dashboard"]) as harmed:
        if phase == "starts":
            harmed.until(lambda: harmed.helpers("atari_dqn.dashboard"))
        else:
            harmed.until(lambda: learns(harmed))
            assert len(harmed.helpers()) == 2
            assert len(harmed.helpers("atari_dqn.dashboard")) == 1
        harmed.signal(number)
        if number == signal.SIGKILL:
            assert harmed.end(helpers=10) == -number  # a reply that is under way, which takes 3 s, it still gives
        else:
            check_stopped(harmed, "interrupted" if phase == "starts" else "state saved")
