"""Saving a trainer to checkpoints, with an alarm while that fails, and resuming it from one."""

import contextlib
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from atari_dqn.agent.finite import NotFiniteError, where_not_finite
from atari_dqn.config.live import Request
from atari_dqn.config.setting import ConfigError
from atari_dqn.monitoring.monitor import Monitor
from atari_dqn.runs.checkpoint_files import Counters, Snapshot
from atari_dqn.runs.checkpoints import CheckpointStore, load_weights
from atari_dqn.training.parts import branch_of
from atari_dqn.training.trainer import Trainer


@dataclasses.dataclass(frozen=True)
class Resumed:
    """What a resume found besides the trainer's own state."""

    notes: list[str] = dataclasses.field(default_factory=list)
    """Lines for the user: skipped checkpoints, cut episodes"""
    overruled: list[Request] = dataclasses.field(default_factory=list)
    """Requests that undo live edits overruled by a flag given since; to be made before anything else"""
    edit_lines: int = 0
    """Number of lines in the edit log when the checkpoint was written"""


def save(trainer: Trainer, store: CheckpointStore, edit_lines: int = 0) -> Path:
    """Write a checkpoint of everything, between two iterations, and return its directory.

    The edit log has `edit_lines` lines by now. Raises `OSError`, and `NotFiniteError` if there is NaN or infinity in
    weights, moments or priorities; what was stored before is still there.
    """
    learner, replay = trainer.learner.state(), trainer.replay.state()
    if where := where_not_finite({**learner, "priorities": replay["leaves"], "largest_priority": replay["largest"]}):
        raise NotFiniteError(f"not saved: {where}")
    frames = replay.pop("frames")[: trainer.replay.newest + 1]
    counters: Counters = {
        "env_steps": trainer.env_steps,
        "episodes": trainer.episodes.state(),
        "evaluated": trainer.evaluated,
        "actor": trainer.actor.state(),
        "rate": _rate(trainer),
        "rate_set_at": trainer.rate_set_at,
        "live": trainer.live.state(),
        "edit_lines": edit_lines,
        "time": trainer.clock.elapsed(),
    }
    score = trainer.episodes.metrics().get("charts/episodic_return")
    history = trainer.workers.state() if trainer.workers is not None else {}
    envs = {name: torch.from_numpy(array) for name, array in history.items()}
    return store.save(trainer.env_steps, Snapshot(counters, learner, replay, frames, envs), score)


def resume(trainer: Trainer, store: CheckpointStore) -> Resumed:
    """Continue from the newest valid checkpoint, if there is one.

    Live edits persist, except where a flag has changed since. In a deterministic run unfinished games continue.
    Otherwise the environments start new ones and the unfinished games are cut as truncations: no transition joins the
    two. Raises `ConfigError` when there are checkpoints and none is valid, or when one does not fit.
    """
    snapshot, notes = store.load_newest(trainer.replay.ring.frames)
    if snapshot is None:
        return Resumed(notes)
    counters, deterministic = snapshot.counters, trainer.config.run.deterministic
    trainer.env_steps = counters["env_steps"]
    trainer.episodes.load(counters["episodes"])
    trainer.evaluated = counters["evaluated"]
    trainer.clock.before = counters["time"]
    trainer.actor.load(counters["actor"])
    trainer.learner.load(snapshot.learner)
    overruled = trainer.live.load(counters["live"])
    trainer.apply_live_values()
    env_steps, updates = counters["rate_set_at"]
    same_rate = counters["rate"] == _rate(trainer)
    trainer.rate_set_at = (env_steps, updates) if same_rate else (trainer.env_steps, trainer.learner.updates)
    trainer.replay.load(snapshot.replay | {"frames": snapshot.frames})
    if deterministic:
        trainer.envs_before = snapshot.envs
    if not trainer.envs_before:
        if deterministic:
            notes.append("unfinished games are cut: the checkpoint was written by a run without --deterministic")
        trainer.replay.cut()
        trainer.episodes.abandon(np.ones(trainer.config.num_envs, dtype=bool))
        # New games, but the same ones every time this checkpoint is resumed.
        trainer.env_seed = branch_of(trainer.env_seed, trainer.env_steps)
    return Resumed(notes, overruled, counters["edit_lines"])


def init_from(trainer: Trainer, file: Path) -> None:
    """Start from the weights of another run's checkpoint. Raises `ConfigError` when they do not fit or are NaN."""
    trainer.learner.load_weights(load_weights(file), file)
    if where := where_not_finite(trainer.learner.online.state_dict()):
        raise ConfigError(f"--init-from {file}: {where}")


def _rate(trainer: Trainer) -> list[float]:
    """The settings that decide how many updates are due; when they change, updates are counted from there."""
    learner = trainer.config.learner
    return [learner.replay_ratio, learner.batch_size, learner.learning_starts]


class NotSaved(Exception):
    """The last save failed; the message says what is left and what to do."""


class Saver:
    """Writes checkpoints of `trainer` and reports on them."""

    def __init__(self, trainer: Trainer, store: CheckpointStore, monitor: Monitor) -> None:
        self._trainer, self._store, self._monitor = trainer, store, monitor
        self.failed = 0
        """Number of saves that have failed in a row"""
        self._saved: tuple[int, ...] = ()
        """Identifies the state that was saved last"""
        self._tried = time.monotonic()

    def overdue(self) -> bool:
        """Whether `--checkpoint-minutes` have passed since the last attempt."""
        minutes = self._trainer.config.run.checkpoint_minutes
        return bool(minutes) and time.monotonic() - self._tried > 60 * minutes

    def save(self, edit_lines: int) -> str:
        """Save, unless this very state is saved already. Returns the problem in one line, after an alarm, or ""."""
        trainer, monitor = self._trainer, self._monitor
        state = trainer.replay.newest, trainer.learner.updates, edit_lines
        self._tried = began = time.monotonic()
        if state == self._saved:
            return ""
        monitor.tick(trainer.env_steps, "saving")
        try:
            path = save(trainer, self._store, edit_lines)
            size = sum(file.stat().st_size for file in path.iterdir())
        except OSError as error:
            self.failed += 1
            return self._alarm(error)
        self._saved, self.failed = state, 0
        monitor.alarm("")
        monitor.say(f"env step {trainer.env_steps:,} saved: {size / 1e6:,.1f} MB in {time.monotonic() - began:.2f} s")
        return ""

    def _alarm(self, error: OSError) -> str:
        left = None
        with contextlib.suppress(OSError):
            left, _ = self._store.newest_valid()
        self._monitor.alarm(f"NOT SAVED since env step {left.name if left else 0}")
        return (
            f"NOT SAVED at env step {self._trainer.env_steps:,}: {error.strerror or error};"
            f" {f'the last valid checkpoint is {left}' if left else 'there is no valid checkpoint'};"
            f" check the permissions and the free space of {self._store.directory}"
        )
