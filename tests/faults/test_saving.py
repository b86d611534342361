"""Saves that are killed at any moment: the newest complete checkpoint stays valid, and leftovers are removed."""

from __future__ import annotations

import multiprocessing
import random
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from atari_dqn.runs.checkpoints import CheckpointStore
from tests.faults import saver

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.faults.saver"])
DEADLINE = 300.0


def started(target: Callable[..., None], *arguments: Any) -> tuple[ForkServerProcess, Connection]:
    heard, told = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=target, args=(*arguments, told), daemon=True)
    process.start()
    told.close()
    return process, heard


def loaded_step(run_dir: Path) -> int:
    """Env step of the checkpoint that a resume loads, after comparing it bit by bit with the snapshot saved."""
    loaded, skipped = CheckpointStore(run_dir).load_newest(saver.empty_frames())
    assert loaded is not None
    assert skipped == [], "a kill leaves no corrupt checkpoint"
    step: int = loaded.counters["env_steps"]
    assert saver.same(loaded, saver.snapshot(step))
    return step


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_save_killed_at_a_random_moment_leaves_the_newest_complete_checkpoint(tmp_path: Path, kills: int) -> None:
    moments = random.Random(kills)
    saved, seconds = 0, 0.2
    in_a_save = 0
    for _ in range(kills):
        process, heard = started(saver.save_repeatedly, tmp_path, saved + 1)
        events: list[tuple[str, int]] = []
        assert heard.poll(DEADLINE)
        began = time.monotonic()
        # Anywhere within three saves, the second of which takes the place of the first.
        until = began + moments.uniform(0, 3 * seconds)
        try:
            while (left := until - time.monotonic()) > 0:
                if heard.poll(left):
                    events.append(heard.recv())
                    if events[-1] == ("saved", saved + 1) and len(events) == 2:
                        seconds = time.monotonic() - began
            process.kill()
            process.join(DEADLINE)
            while heard.poll():
                events.append(heard.recv())
        except EOFError:
            pass
        assert process.exitcode == -signal.SIGKILL
        in_a_save += bool(events) and events[-1][0] == "started"
        told = max((step for what, step in events if what == "saved"), default=saved)
        if told or CheckpointStore(tmp_path).steps():
            step = loaded_step(tmp_path)
            # A save may be complete but not reported yet.
            assert told <= step <= told + 1
            saved = step
    CheckpointStore(tmp_path).save(saved + 1, saver.snapshot(saved + 1), score=None)
    assert saver.leftovers(tmp_path) == []
    print(f"{kills} of {kills} valid; {in_a_save} killed within a save of {seconds:.2f} s; {saved} env steps")
    assert in_a_save > kills / 2


@pytest.mark.parametrize(
    ("before", "all_of_them"),
    [(2, False), *(pytest.param(before, True, marks=pytest.mark.slow) for before in (0, 1, 2))],
)
def test_a_save_killed_before_any_of_its_file_operations_leaves_the_newest_complete_one(
    tmp_path: Path, before: int, all_of_them: bool
) -> None:
    """`before` is the env step saved earlier; the save of 2 is killed. The short test covers the renames."""

    def killed(operation: int) -> list[str]:
        """Kill the save before that operation. Returns its operations if it was not killed."""
        run_dir = tmp_path / str(operation)
        store = CheckpointStore(run_dir)
        if before:
            store.save(before, saver.snapshot(before), score=float(before))
        process, heard = started(saver.save_and_die, run_dir, 2, operation)
        process.join(DEADLINE)
        if process.exitcode == 0:
            operations: list[str] = heard.recv()
            return operations
        assert process.exitcode == -signal.SIGKILL
        if before:
            store.find("latest")  # an evaluation finds it without a resume, and may rename nothing
            assert loaded_step(run_dir) in (before, 2)
        store.save(3, saver.snapshot(3), score=None)
        assert saver.leftovers(run_dir) == []
        assert loaded_step(run_dir) == 3
        if before:
            assert store.find("best").name in ("1", "2")
        return []

    operations = killed(sys.maxsize)
    around = {place + after for place, name in enumerate(operations[:-1]) if name == "os.rename" for after in (0, 1)}
    for operation in range(len(operations)) if all_of_them else sorted(around):
        assert killed(operation) == []
