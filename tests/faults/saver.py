"""A process that saves checkpoints in a loop, to be killed while it does; and what it saves, to compare with.

The fork server imports this module once, so that a hundred such processes cost little.
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
"""Of which Python tells an audit hook."""
torch.set_num_threads(1)


def empty_frames() -> torch.Tensor:
    return torch.zeros(ROWS, 2, 84, 84, dtype=torch.uint8)


def snapshot(step: int, score: float = 0.0) -> Snapshot:
    """Of some megabytes, all of it decided by `step`."""
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


def litter(run_dir: Path) -> list[str]:
    """What has no business in a directory of checkpoints when no save is under way."""
    names = [path.name for path in (run_dir / "checkpoints").iterdir()]
    return [name for name in names if not name.isdigit() and name not in ("latest", "best")]


def save_on(run_dir: Path, first: int, told: Connection) -> None:
    """Save env steps `first`, `first` again, `first + 1`, twice again, and so on; tell each before and after."""
    store = CheckpointStore(run_dir)
    for step in range(first, sys.maxsize):
        saved = snapshot(step)
        for _ in range(2):
            told.send(("begun", step))
            store.save(step, saved, score=None)
            told.send(("saved", step))


def save_and_die(run_dir: Path, step: int, after: int, told: Connection) -> None:
    """Save `step`, and die by SIGKILL before file operation number `after`; tell of all of them if alive."""
    store, saved = CheckpointStore(run_dir), snapshot(step)
    operations: list[str] = []

    def count(event: str, _: tuple[Any, ...]) -> None:
        if event in OPERATIONS:
            if len(operations) == after:
                os.kill(os.getpid(), signal.SIGKILL)
            operations.append(event)

    sys.addaudithook(count)
    store.save(step, saved, score=float(step))
    told.send(operations)
