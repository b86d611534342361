"""Saves that are killed: whatever the moment, the newest complete checkpoint is there, whole, and litter goes."""

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
import torch

from atari_dqn.runs.checkpoints import CheckpointStore
from tests.faults import saver

CPU = torch.device("cpu")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.faults.saver"])
DEADLINE = 60.0


def started(target: Callable[..., None], *arguments: Any) -> tuple[ForkServerProcess, Connection]:
    heard, told = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=target, args=(*arguments, told), daemon=True)
    process.start()
    told.close()
    return process, heard


def loaded_step(run_dir: Path) -> int:
    """Of the checkpoint a resume would take, compared with what was saved down to the last bit."""
    loaded, skipped = CheckpointStore(run_dir).load_newest(CPU, saver.empty_frames())
    assert loaded is not None
    assert skipped == [], "a kill leaves nothing that looks like a checkpoint and is none"
    step: int = loaded.counters["env_steps"]
    assert saver.same(loaded, saver.snapshot(step))
    return step


@pytest.mark.parametrize("kills", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_a_save_killed_at_a_random_moment_leaves_the_newest_complete_checkpoint(tmp_path: Path, kills: int) -> None:
    moments = random.Random(kills)
    saved, seconds = 0, 0.2
    in_a_save = 0
    for _ in range(kills):
        process, heard = started(saver.save_on, tmp_path, saved + 1)
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
        in_a_save += bool(events) and events[-1][0] == "begun"
        told = max((step for what, step in events if what == "saved"), default=saved)
        if told or CheckpointStore(tmp_path).steps():
            step = loaded_step(tmp_path)
            # One that was renamed in just before the kill is not told yet.
            assert told <= step <= told + 1
            saved = step
    CheckpointStore(tmp_path).save(saved + 1, saver.snapshot(saved + 1), score=None)
    assert saver.litter(tmp_path) == []
    print(f"{kills} of {kills} whole; {in_a_save} killed within a save of {seconds:.2f} s; {saved} env steps")
    assert in_a_save > kills / 2


@pytest.mark.parametrize(
    ("before", "all_of_them"),
    [(2, False), *(pytest.param(before, True, marks=pytest.mark.slow) for before in (0, 1, 2))],
)
def test_a_save_killed_before_any_of_its_file_operations_leaves_the_newest_complete_one(
    tmp_path: Path, before: int, all_of_them: bool
) -> None:
    """`before` is the env step saved until then, once; the one that is killed is 2. The short test is of renames."""

    def killed(operation: int) -> list[str]:
        """The file operations of the save, if it outlived them."""
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
            store.find("latest")  # what a resume takes, an evaluation finds before it, where nothing may be renamed
            assert loaded_step(run_dir) in (before, 2)
        store.save(3, saver.snapshot(3), score=None)
        assert saver.litter(run_dir) == []
        assert loaded_step(run_dir) == 3
        if before:
            assert store.find("best").name in ("1", "2")
        return []

    operations = killed(sys.maxsize)
    around = {place + after for place, name in enumerate(operations) if name == "os.rename" for after in (0, 1)}
    for operation in range(len(operations)) if all_of_them else sorted(around):
        assert killed(operation) == []
