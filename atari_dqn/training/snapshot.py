"""Saving a trainer to a checkpoint and resuming it from one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch

from atari_dqn.agent.finite import refuse_not_finite, where_not_finite
from atari_dqn.config.live import Request
from atari_dqn.config.setting import ConfigError
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
    """Write a checkpoint of everything, in a deterministic run including what restores the environments.

    Args:
        trainer: Between two iterations.
        store: The run's checkpoints.
        edit_lines: Number of lines in the edit log by now.

    Returns:
        The checkpoint's directory.

    Raises:
        OSError: Writing failed; what was stored before is still there.
        NotFiniteError: There is NaN or infinity in weights, moments or priorities; nothing was saved.
    """
    learner, replay = trainer.learner.state(), trainer.replay.state()
    refuse_not_finite({**learner, "priorities": replay["leaves"], "largest_priority": replay["largest"]})
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
        # Other games than those already played, yet the same ones whenever this checkpoint is resumed.
        trainer.env_seed = branch_of(trainer.env_seed, trainer.env_steps)
    return Resumed(notes, overruled, counters["edit_lines"])


def init_from(trainer: Trainer, file: Path) -> None:
    """Start from the weights of another run's checkpoint. Raises `ConfigError` when they do not fit or are NaN."""
    trainer.learner.load_weights(load_weights(file), file)
    if where := where_not_finite(trainer.learner.online.state_dict()):
        raise ConfigError(f"--init-from {file}: {where}")


def _rate(trainer: Trainer) -> list[float]:
    """The settings that decide how many updates are due.

    When they change, updates are counted from there, or a burst of them would be due at once.
    """
    learner = trainer.config.learner
    return [learner.replay_ratio, learner.batch_size, learner.learning_starts]
