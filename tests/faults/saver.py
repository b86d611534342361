"""A process that saves checkpoints in a loop until it is killed, and the snapshots that it saves.

The fork server imports this module once, so a hundred such processes cost little.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from atari_dqn.runs.checkpoint_files import Snapshot
from atari_dqn.runs.checkpoints import CheckpointStore

ROWS = 100
OPERATIONS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"}
"""File operations that Python reports to an audit hook."""
torch.set_num_threads(1)


def empty_frames() -> torch.Tensor:
    return torch.zeros(ROWS, 2, 84, 84, dtype=torch.uint8)


def snapshot(step: int, score: float = 0.0) -> Snapshot:
    """A snapshot of some megabytes that depends on `step` alone."""
    generator = torch.Generator().manual_seed(step)
    return Snapshot(
        counters={"env_steps": step},
        learner={"online": {"weight": torch.randn(300, 400, generator=generator)}, "updates": step},
        replay={"leaves": torch.rand(50_000, dtype=torch.float64, generator=generator), "newest": step},
        frames=torch.randint(0, 256, (ROWS, 2, 84, 84), dtype=torch.uint8, generator=generator),
        envs={"actions": torch.arange(step)},
    )


def same(loaded: Snapshot, saved: Snapshot) -> bool:
    return (
        loaded.counters["env_steps"] == saved.counters["env_steps"]
        and torch.equal(loaded.learner["online"]["weight"], saved.learner["online"]["weight"])
        and torch.equal(loaded.replay["leaves"], saved.replay["leaves"])
        and torch.equal(loaded.envs["actions"], saved.envs["actions"])
        and torch.equal(loaded.frames, saved.frames)
    )


def leftovers(run_dir: Path) -> list[str]:
    """Names that should not be in a directory of checkpoints while nothing is being saved."""
    names = [path.name for path in (run_dir / "checkpoints").iterdir()]
    return [name for name in names if not name.isdigit() and name not in ("latest", "best")]


def save_repeatedly(run_dir: Path, first: int, reports: Connection) -> None:
    """Save env steps `first`, `first + 1` and so on, each twice; report each save before and after it."""
    store = CheckpointStore(run_dir)
    for step in range(first, sys.maxsize):
        saved = snapshot(step)
        for _ in range(2):
            reports.send(("started", step))
            store.save(step, saved, score=None)
            reports.send(("saved", step))


def save_and_die(run_dir: Path, step: int, after: int, reports: Connection) -> None:
    """Save `step` and die by SIGKILL before file operation number `after`; report all operations if alive."""
    store, saved = CheckpointStore(run_dir), snapshot(step)
    operations: list[str] = []

    def count(event: str, _: tuple[Any, ...]) -> None:
        if event in OPERATIONS:
            if len(operations) == after:
                os.kill(os.getpid(), signal.SIGKILL)
            operations.append(event)

    sys.addaudithook(count)
    store.save(step, saved, score=float(step))
    reports.send(operations)
