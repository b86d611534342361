"""Lock of a run directory: one process at a time, whoever looks, and however that process ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from atari_dqn.config.setting import ConfigError
from atari_dqn.runs.lock import LOCK, check_not_training, is_training, locked
from atari_dqn.system.files import exclusive

HOLD = """
import sys, time
from pathlib import Path
from atari_dqn.runs.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def holder(run_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(run_dir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_is_refused_and_told_who_trains_until_the_first_is_killed(tmp_path: Path) -> None:
    run_dir = tmp_path / "new" / "run"
    assert not is_training(run_dir)
    with holder(run_dir) as process:
        assert is_training(run_dir)
        words = f"^process {process.pid} is training in {run_dir}; choose another --run-dir$"
        with pytest.raises(ConfigError, match=words), locked(run_dir):
            pytest.fail("held twice")
        with pytest.raises(ConfigError, match=words):
            check_not_training(run_dir)
        assert (run_dir / LOCK).read_text() == str(process.pid), "an attempt does not change the file"
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_training(run_dir)
    with locked(run_dir):
        assert (run_dir / LOCK).read_text() == str(os.getpid())
        assert is_training(run_dir), "for this process, too"
    assert not is_training(run_dir)
    check_not_training(run_dir)


def test_looking_stops_no_training_from_starting_and_lookers_do_not_see_each_other(tmp_path: Path) -> None:
    with (tmp_path / LOCK).open("w") as looker:
        fcntl.flock(looker, fcntl.LOCK_SH)  # in the midst of `is_training`, which takes microseconds
        assert not is_training(tmp_path)
        leaving = threading.Timer(0.1, fcntl.flock, (looker, fcntl.LOCK_UN))
        leaving.start()
        with locked(tmp_path):
            assert is_training(tmp_path)
        leaving.join()


def test_looking_creates_nothing_and_never_raises(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "absent", tmp_path / "file"):
        assert not is_training(place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_cannot_be_locked_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "run" / LOCK).mkdir(parents=True)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / LOCK).symlink_to(tmp_path / "file")
    places = {"file": "File exists", "file/run": "Not a directory", "run": "Is a directory", "linked": "symbolic"}
    for place, reason in places.items():
        with (
            pytest.raises(ConfigError, match=f"^cannot lock --run-dir {tmp_path / place}: [^\n]*{reason}"),
            locked(tmp_path / place),
        ):
            pytest.fail("locked")


def test_nothing_that_was_made_is_left_where_nothing_came_of_it(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    for place in ("kept", "new/run", "kept/new/run"):
        with locked(tmp_path / place):
            assert is_training(tmp_path / place)
        assert [path.name for path in tmp_path.rglob("*")] == ["kept"]
    with pytest.raises(ConfigError, match="File name too long"), locked(tmp_path / "new" / ("x" * 300) / "run"):
        pytest.fail("locked")
    assert [path.name for path in tmp_path.rglob("*")] == ["kept"]


def test_a_holder_that_ends_while_it_is_looked_up_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atari_dqn.runs.lock.is_training", lambda run_dir: True)
    with pytest.raises(ConfigError, match=r"^process \? is training in "):
        check_not_training(tmp_path)


def test_a_deleted_file_does_not_let_two_wait_for_one_lock(tmp_path: Path) -> None:
    """Whoever starts after the file was deleted makes a new one, and is the one that others then meet."""
    with locked(tmp_path):
        (tmp_path / LOCK).unlink()
        assert not is_training(tmp_path)
        with locked(tmp_path), pytest.raises(ConfigError, match="is training in"), locked(tmp_path):
            pytest.fail("held twice")


def test_an_error_inside_is_not_taken_for_the_locks_own(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="mine"), exclusive(tmp_path / "lock"):
        raise BlockingIOError("mine")
    with exclusive(tmp_path / "lock"), pytest.raises(BlockingIOError, match="another process"):
        exclusive(tmp_path / "lock").__enter__()
