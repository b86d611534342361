"""Full, failing and read-only disks: training continues, one line says so, and nothing complete is lost.

The faults are real: a file system of 1 MB (where the tests may mount one), the kernel's limit on the size of files,
and /dev/full.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.monitoring.monitor import Monitor
from atari_dqn.monitoring.tensorboard import TensorBoard
from atari_dqn.runs.checkpoint_files import Snapshot
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.runs.directory import check_run_dir
from atari_dqn.runs.records import MAX_WAITING, Journal, discard_after, line
from atari_dqn.system.files import append
from atari_dqn.training.session import Session
from atari_dqn.training.snapshot import NotSaved
from tests.faults import saver
from tests.test_train import SHORT, rows
from tests.training.test_trainer import make_trainer


@contextlib.contextmanager
def largest_file(most_bytes: int) -> Iterator[None]:
    """Writes to files beyond that many bytes fail with EFBIG, as on a full disk, perhaps after a part."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Limited:
    """A disk on which files cannot grow while it is full."""

    message = os.strerror(errno.EFBIG)

    def __init__(self, directory: Path) -> None:
        self.directory, self._stack = directory, contextlib.ExitStack()
        directory.mkdir()
        self._full = False

    def fill(self) -> None:
        if not self._full:
            self._stack.enter_context(largest_file(60))
        self._full = True

    def free(self) -> None:
        self._stack.close()
        self._full = False

    close = free


class Small:
    """A file system of 1 MB, filled to the last byte while it is full."""

    message = os.strerror(errno.ENOSPC)

    def __init__(self, directory: Path, exist_ok: bool = False) -> None:
        self.directory, self._filler = directory, directory / ".filler"
        directory.mkdir(exist_ok=exist_ok)
        self._mount("-t", "tmpfs", "-o", "size=1m", "tmpfs")

    def _mount(self, *arguments: str) -> None:
        try:
            mounted = subprocess.run(["mount", *arguments, str(self.directory)], capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip("no mount here")
        if mounted.returncode:
            pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")

    def fill(self) -> None:
        if not self._filler.exists():
            with self._filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def make_read_only(self) -> None:
        self._mount("-o", "remount,ro")

    def close(self) -> None:
        subprocess.run(["umount", str(self.directory)], check=True)


@pytest.fixture(params=[Limited, Small])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made = request.param(tmp_path / "disk")
    yield made
    made.close()


def train(disk: Any, is_full: Callable[[int], bool], total: int = 2_400) -> str:
    """Train in the disk's directory, which is full at the env steps named. Returns the output."""
    told = io.StringIO()
    trainer = make_trainer(total_env_steps=total, checkpoint_interval=400, log_interval=40)
    monitor = Monitor(disk.directory, Console(file=told, width=400), "test", total, 0)

    def weather() -> bool:
        disk.fill() if is_full(trainer.env_steps) else disk.free()
        return False

    try:
        Session(trainer, disk.directory, monitor, weather).run()
    finally:
        monitor.close()
    return told.getvalue()


def test_a_training_outlives_a_full_disk_and_loses_no_row(disk: Any) -> None:
    told = train(disk, lambda env_steps: 600 <= env_steps < 1_700)
    alarms = [text for text in told.splitlines() if "  NOT SAVED at" in text]
    assert len(alarms) == 3
    left = f"the last valid checkpoint is {disk.directory}/checkpoints/4..;"
    assert re.match(f"..:..:..  NOT SAVED at env step 8..: {disk.message}; {left}", alarms[0])
    saved = [text for text in told.splitlines() if " saved: " in text]
    assert len(saved) == 3, "before, after, and at the end"
    for name in ("metrics.jsonl", "tfevents"):
        about = [text for text in told.splitlines() if name in text]
        assert ["wait in memory" in text for text in about] == [True, False], about
        assert "is written again" in about[1]
    logged = rows(disk.directory)
    steps = [row["env_step"] for row in logged]
    assert [step // 40 for step in steps] == list(range(1, 61))
    failed = [row["run/failed_saves"] for row in logged]
    assert sorted(set(failed)) == [0, 1, 2, 3], "to be seen until a save succeeds"
    assert failed[-1] == 0
    events = EventAccumulator(str(disk.directory)).Reload().Scalars("charts/SPS")
    assert [event.step for event in events] == steps
    store = CheckpointStore(disk.directory)
    assert saver.leftovers(disk.directory) == []
    assert store.find("latest").name == str(steps[-1])


def test_the_state_that_could_not_be_saved_at_the_end_is_said_with_what_is_left(disk: Any) -> None:
    with pytest.raises(NotSaved, match=f"{disk.message}; the last valid checkpoint is .*checkpoints/4..; ") as caught:
        train(disk, lambda env_steps: env_steps >= 600, total=1_000)
    disk.free()
    assert "\n" not in str(caught.value)
    assert saver.leftovers(disk.directory) == []
    assert CheckpointStore(disk.directory).find("latest").name.startswith("4")


def test_a_directory_that_became_read_only_ends_no_training(tmp_path: Path) -> None:
    disk = Small(tmp_path / "checkpoints")
    told = io.StringIO()
    trainer = make_trainer(total_env_steps=1_000, checkpoint_interval=400)
    monitor = Monitor(tmp_path, Console(file=told, width=400), "test", 1_000, 0)

    def weather() -> bool:
        if trainer.env_steps >= 600:
            disk.make_read_only()
        return False

    try:
        with pytest.raises(
            NotSaved, match=r"Read-only file system; the last valid checkpoint is .*4\d\d; check the perm"
        ):
            Session(trainer, tmp_path, monitor, weather).run()
    finally:
        monitor.close()
        disk.close()
    assert told.getvalue().count("NOT SAVED at env step 8") == 1


@pytest.mark.parametrize("which", [".", "checkpoints"])
def test_a_read_only_directory_is_said_up_front(tmp_path: Path, which: str) -> None:
    (tmp_path / "run").mkdir()
    disk = Small(tmp_path / "run" / which, exist_ok=True)
    try:
        disk.make_read_only()
        with pytest.raises(ConfigError, match="is not writable"):
            check_run_dir(TrainConfig(), tmp_path / "run")
    finally:
        disk.close()


def test_a_save_that_fails_anywhere_raises_the_disks_error_and_leaves_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, saver.snapshot(1), score=None)
    sizes = sorted(path.stat().st_size for path in (store.directory / "1").iterdir())
    for most_bytes in (0, *(size - 1 for size in sizes), sizes[-1] // 2):
        with largest_file(most_bytes), pytest.raises(OSError, match="File too large"):
            store.save(2, saver.snapshot(2), score=None)
        assert saver.leftovers(tmp_path) == []
        assert store.steps() == [1]
    loaded, _ = store.load_newest(saver.empty_frames())
    assert loaded is not None
    assert saver.same(loaded, saver.snapshot(1))


def test_a_save_takes_no_second_copy_of_the_frames(tmp_path: Path) -> None:
    frames = torch.randint(0, 256, (2_000, 8, 84, 84), dtype=torch.uint8)  # 113 MB
    CheckpointStore(tmp_path).save(1, Snapshot({}, {}, {}, frames[:10]), score=None)
    before = _peak_bytes()
    CheckpointStore(tmp_path).save(2, Snapshot({}, {}, {}, frames), score=None)
    assert _peak_bytes() - before < frames.nbytes // 2


def _peak_bytes() -> int:
    (peak,) = (text for text in Path("/proc/self/status").read_text().splitlines() if text.startswith("VmHWM"))
    return 1024 * int(peak.split()[1])


def test_a_row_is_appended_completely_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    append(file, line({"env_step": 1}))
    before = file.read_bytes()
    for most_bytes in range(len(before), 2 * len(before)):
        with largest_file(most_bytes), pytest.raises(OSError, match="File too large"):
            append(file, line({"env_step": 2}))
        assert file.read_bytes() == before
    append(file, line({"env_step": 2}))
    assert [json.loads(text)["env_step"] for text in file.read_text().splitlines()] == [1, 2]


def test_what_waits_is_written_in_order_and_has_an_end(tmp_path: Path) -> None:
    told: list[str] = []
    file = tmp_path / "rows.jsonl"
    journal = Journal(file, told.append)
    journal.write(line({"row": 0}))
    with largest_file(15):
        for row in range(1, MAX_WAITING + 3):
            journal.write(line({"row": row}))
        assert [text.split()[:2] for text in told] == [["cannot", "write"]]
    journal.write(line({"row": MAX_WAITING + 3}))
    kept = [json.loads(text)["row"] for text in file.read_text().splitlines()]
    assert kept == [0, *range(4, MAX_WAITING + 4)]
    assert told[1:] == [f"{file} is written again: {MAX_WAITING - 1:,} rows were late; 3 older ones are lost"]
    with largest_file(15):
        journal.write(line({"row": -1}))
        journal.close()
    assert told[-1] == f"{file}: 1 rows were never written: File too large"


def test_an_event_that_came_late_is_shown_like_the_others(tmp_path: Path) -> None:
    view = TensorBoard(tmp_path, 0, lambda _: None)
    for step in range(1, 10):
        with largest_file(300 if 3 <= step < 7 else resource.RLIM_INFINITY):
            view.write({"env_step": step, "charts/SPS": float(step)})
    view.close()
    assert [event.step for event in EventAccumulator(str(tmp_path)).Reload().Scalars("charts/SPS")] == list(
        range(1, 10)
    )


def test_a_record_whose_rows_cannot_be_discarded_is_unchanged(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for step in range(10):
        append(file, line({"env_step": step}))
    before = file.read_bytes()
    with largest_file(20):
        discard_after(file, 9)  # nothing to do
        with pytest.raises(OSError, match="File too large"):
            discard_after(file, 5)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def run_limited(most_bytes: int, command: list[str], cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    # Of the limit git would die, and leave this repository locked: a run asks it for the revision.
    # Buffered, as a user's output is: Python tries to write what is left at the very end.
    changed = {"GIT_DIR": os.devnull, "PYTHONUNBUFFERED": ""}
    # The limit does not apply to pipes, so the output arrives.
    return subprocess.run(
        command,
        cwd=cwd,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        preexec_fn=limit,
        env=os.environ | changed,
        **options,
    )


def test_a_run_that_cannot_begin_for_want_of_room_says_so_in_one_line(tmp_path: Path) -> None:
    result = run_limited(100, [*SHORT, "--run-dir", "a"], tmp_path, stdout=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr == "error: a cannot be written: File too large\n"
    assert not (tmp_path / "a").exists(), "and may begin there when there is"


def test_a_run_that_could_not_save_at_its_end_fails_in_one_line(tmp_path: Path) -> None:
    command = [*SHORT, "--total-env-steps", "1200", "--run-dir", "a"]
    result = run_limited(12_000, command, tmp_path, stdout=subprocess.PIPE)
    assert result.returncode == 1
    assert result.stderr.startswith("error: NOT SAVED at env step 1,20")
    assert "File too large; there is no valid checkpoint;" in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout.count("NOT SAVED at") == 1, "of env step 1,000; a progress line may repeat the alarm"
    assert len(rows(tmp_path / "a")) == 12
    assert list((tmp_path / "a" / "checkpoints").iterdir()) == []


def test_output_into_a_full_disk_ends_nothing(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*SHORT, "--total-env-steps", "400", "--run-dir", "a"]
        result = run_limited(resource.RLIM_INFINITY, command, tmp_path, stdout=full)
    assert (result.returncode, result.stderr) == (0, "")
    assert CheckpointStore(tmp_path / "a").find("latest").name in ("400", "401", "402", "403")
