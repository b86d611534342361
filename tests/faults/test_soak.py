"""A training left alone for an hour, with all that happens in one: nothing grows, nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from atari_dqn.config.live import new_request
from atari_dqn.runs.edits import Inbox

TRAIN = [
    *(sys.executable, "-m", "atari_dqn.train", "--run-dir", "run", "--num-workers", "4", "--replay-capacity", "4096"),
    *("--learning-starts", "1000", "--checkpoint-interval", "5000", "--log-interval", "200"),
    *("--eval-interval", "5000", "--eval-episodes", "2", "--target-update-interval", "100"),
    *("--worker-restarts", "1000"),  # on a busy machine 45 s are few ticks, and here no worker is to blame
]
SAMPLE_SECONDS, EVENT_SECONDS = 2.0, 45.0
MOST_GROWTH = 0.01
"""Of the resident memory, in an hour; what an allocator's moods look like from outside."""


def workers_of(trainer: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in trainer.children():
        with contextlib.suppress(psutil.Error):  # it may end while it is looked at
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [4, 60])
@pytest.mark.parametrize("mode", [[], ["--deterministic"]], ids=["default", "deterministic"])
def test_a_training_left_alone_grows_in_nothing(mode: list[str], minutes: int, tmp_path: Path) -> None:
    """Rows, checkpoints, evaluations, edits asked for and a worker killed every 45 s; counted after the first fifth."""
    with (tmp_path / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [*TRAIN, "--total-env-steps", str(10**9), *mode], cwd=tmp_path, stdout=output, stderr=output
        )
    rng, inbox, events = random.Random(0), Inbox(tmp_path / "run"), 0
    samples: list[tuple[float, int, int, int, int]] = []
    trainer, began = psutil.Process(process.pid), time.monotonic()
    try:
        while (elapsed := time.monotonic() - began) < 60 * minutes:
            time.sleep(SAMPLE_SECONDS)  # between two samples, not for anything to happen
            assert process.poll() is None, (tmp_path / "output.txt").read_text()
            workers = workers_of(trainer)
            with trainer.oneshot():
                counts = trainer.num_fds(), trainer.num_threads(), len(workers)
                samples.append((elapsed, trainer.memory_info().rss, *counts))
            if elapsed > (events + 1) * EVENT_SECONDS and len(workers) == 4:
                events += 1
                inbox.put(new_request("learning_rate", rng.choice([1e-4, 2e-4, -1])))
                os.kill(rng.choice(workers).pid, signal.SIGKILL)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 3
    finally:
        process.kill()
        process.wait()
    text = (tmp_path / "output.txt").read_text()
    assert text.count("was killed by SIGKILL") >= events - 2  # one may be an evaluation's, one may come at the end
    settled = np.array([sample for sample in samples if sample[0] > max(90, 12 * minutes)])
    hours, resident = settled[:, 0] / 3600, settled[:, 1]
    slope = float(np.polyfit(hours, resident, 1)[0])
    print(
        f"{minutes} minutes, {events} workers killed; resident memory {resident.mean() / 1e6:.1f} MB,"
        f" slope {slope / 1e6:+.2f} MB an hour, last less first tenth"
        f" {(resident[-len(resident) // 10 :].mean() - resident[: len(resident) // 10].mean()) / 1e6:+.2f} MB"
    )
    for name, column in (("file descriptors", 2), ("threads", 3), ("children", 4)):
        halves = np.array_split(settled[:, column], 2)
        first, second = (statistics.mode(half.tolist()) for half in halves)
        print(f"{name}: {first:g} and {second:g} in most samples of the two halves")
        assert first == second, name
    if minutes >= 60:
        assert abs(slope) < MOST_GROWTH * resident.mean()
