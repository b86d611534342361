"""Snapshots: every field of every part is saved, and restored into a trainer that had another value."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from atari_dqn.config.live import Request
from atari_dqn.runs.checkpoint_files import PARTS, Snapshot, read
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.training.snapshot import resume, save
from atari_dqn.training.trainer import Trainer
from tests.training.test_trainer import make_trainer, started

SETTINGS: dict[str, Any] = {"deterministic": True, "optimizer": "adamw"}
FIELDS = {
    "counters": "env_steps episodes evaluated actor rate rate_set_at live edit_lines time",
    "learner": "online target optimizer updates skipped metric_sums",
    "replay": "newest age action reward terminal last drawable leaves largest generator",
    "envs": "seed seeds drawn anchor actions",
    "episodes": "return length returns lengths finished",
    "optimizer": "step exp_avg exp_avg_sq max_exp_avg_sq",
}


def stored(store: CheckpointStore, trainer: Trainer) -> Snapshot:
    return read(store.find("latest"), torch.zeros_like(trainer.replay.ring.frames))


def plain(value: Any) -> str:
    """A nested state as text, bit for bit."""
    return json.dumps(value, default=lambda tensor: (str(tensor.dtype), tensor.tolist()), sort_keys=True)


def test_every_field_of_a_checkpoint_is_restored(tmp_path: Path) -> None:
    first, second, none = (CheckpointStore(tmp_path / name) for name in ("first", "second", "none"))
    with started(**SETTINGS) as trainer:
        while trainer.env_steps < 600:
            trainer.iterate()
            if trainer.env_steps == 400:
                for name, value in (("learning_rate", 3e-4), ("epsilon", 0.3), ("replay_ratio", 5.0)):
                    assert trainer.edit(Request(name, value, "tune")).taken
        trainer.evaluated = 3.5
        trainer.learner._skipped += 1
        save(trainer, first, edit_lines=3)
        values, rate = trainer.live.values, trainer.learner.learning_rate.item()
    fresh, resumed = make_trainer(**SETTINGS), make_trainer(**SETTINGS)
    save(fresh, none)
    found = resume(resumed, first)
    assert (found.notes, found.overruled, found.edit_lines) == ([], [], 3)
    save(resumed, second, found.edit_lines)
    saved, again, unused = (stored(store, resumed) for store in (first, second, none))

    for part in ("counters", *PARTS):
        one, two, other = (getattr(snapshot, part) for snapshot in (saved, again, unused))
        assert set(one) == set(FIELDS[part].split())
        if part == "envs":
            two = resumed.envs_before
        for name in one:
            assert plain(one[name]) != plain(other.get(name)), f"{name} is as in a fresh trainer, which proves nothing"
            if name != "time":
                assert plain(one[name]) == plain(two[name]), name
    assert set(saved.learner["optimizer"]) == set(FIELDS["optimizer"].split())
    episodes = saved.counters["episodes"]
    assert set(episodes) == set(FIELDS["episodes"].split())
    assert not [name for name in episodes if plain(episodes[name]) == plain(unused.counters["episodes"][name])]
    assert 0 < saved.counters["time"] <= again.counters["time"] < saved.counters["time"] + 60
    assert torch.equal(saved.frames, again.frames)
    assert (resumed.live.values, resumed.learner.learning_rate.item()) == (values, rate)
    assert (rate, resumed.current_epsilon()) == (pytest.approx(3e-4), 0.3)
