"""Checkpoints: an exact round trip, and nothing torn or altered is ever taken for whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from atari_dqn.config.setting import ConfigError
from atari_dqn.runs.checkpoint_files import Snapshot
from atari_dqn.runs.checkpoints import CheckpointStore, load_weights

CPU = torch.device("cpu")


def snapshot(step: int) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    return Snapshot(
        counters={"env_steps": step},
        learner={"online": {"weight": torch.randn(3, 4, generator=generator)}, "updates": step},
        replay={"leaves": torch.rand(8, dtype=torch.float64, generator=generator), "newest": step},
        frames=torch.randint(0, 256, (300, 2, 84, 84), dtype=torch.uint8, generator=generator),
    )


def empty_frames() -> torch.Tensor:
    return torch.zeros(300, 2, 84, 84, dtype=torch.uint8)


def test_a_checkpoint_comes_back_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("atari_dqn.runs.checkpoint_files.CHUNK_BYTES", 100_000)  # several chunks, the last one short
    store, saved = CheckpointStore(tmp_path), snapshot(7)
    store.save(7, saved, score=None)
    loaded, skipped = store.load_newest(CPU, empty_frames())
    assert skipped == []
    assert loaded is not None
    assert loaded.counters["env_steps"] == 7
    assert torch.equal(loaded.learner["online"]["weight"], saved.learner["online"]["weight"])
    assert torch.equal(loaded.replay["leaves"], saved.replay["leaves"])
    assert torch.equal(loaded.frames, saved.frames)


def test_an_empty_directory_holds_none(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path).load_newest(CPU, empty_frames()) == (None, [])
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        CheckpointStore(tmp_path).find("latest")


@pytest.mark.parametrize("name", ["learner.pt", "replay.pt", "frames.zst", "counters.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_the_newest_whole_checkpoint_is_taken_and_the_damaged_one_named(tmp_path: Path, name: str, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, snapshot(1), score=None)
    file = store.save(2, snapshot(2), score=None) / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    loaded, skipped = store.load_newest(CPU, empty_frames())
    assert loaded is not None
    assert loaded.counters["env_steps"] == 1
    assert len(skipped) == 1
    assert "2 skipped" in skipped[0]
    assert [path.name for path in store.directory.glob("*.damaged")] == ["2.damaged"]


def test_a_checkpoint_saved_behind_a_damaged_one_stays(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for step in (1, 20, 30):
        store.save(step, snapshot(step), score=None)
        if step > 1:
            (store.directory / str(step) / "learner.pt").write_bytes(b"damaged")
        else:
            shutil.copytree(store.directory / "1", tmp_path / "kept")
    shutil.copytree(tmp_path / "kept", store.directory / "1", dirs_exist_ok=True)
    loaded, skipped = store.load_newest(CPU, empty_frames())
    assert loaded is not None
    assert loaded.counters["env_steps"] == 1
    assert len(skipped) >= 1
    store.save(2, snapshot(2), score=None)
    assert store.find("latest").name == "2"
    again, skipped = store.load_newest(CPU, empty_frames())
    assert again is not None
    assert again.counters["env_steps"] == 2
    assert skipped == []


def test_what_was_saved_last_stays_whatever_its_number(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(30, snapshot(30), score=None)
    store.save(2, snapshot(2), score=None)
    assert store.steps() == [2, 30]


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (store.save(1, snapshot(1), score=None) / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="no whole checkpoint is left"):
        store.load_newest(CPU, empty_frames())


def test_a_save_that_was_killed_is_not_seen(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    whole = store.save(1, snapshot(1), score=None)
    shutil.copytree(whole, store.directory / ".2.partial")
    assert store.steps() == [1]
    store.save(2, snapshot(2), score=None)
    assert store.steps() == [1, 2]
    assert store.find("latest").name == "2"
    assert not list(store.directory.glob(".*"))


def test_the_newest_few_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step, score in [(1, 0.0), (2, 9.0), (3, 1.0), (4, None), (5, 3.0)]:
        store.save(step, snapshot(step), score)
    assert store.steps() == [2, 4, 5]
    assert store.find("best").name == "2"
    assert store.find("latest").name == "5"
    assert store.find("4").name == "4"
    with pytest.raises(ConfigError, match="one of 2, 4, 5"):
        store.find("3")
    with pytest.raises(ConfigError, match="latest, best"):
        store.find("worst")


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"online": print}, tmp_path / "learner.pt")
    with pytest.raises(ConfigError, match="no weights at"):
        load_weights(tmp_path / "learner.pt")
    for content in (b"", b"text"):
        (tmp_path / "learner.pt").write_bytes(content)
        with pytest.raises(ConfigError, match="no weights at"):
            load_weights(tmp_path / "learner.pt")
    torch.save({"online": {"a": 1}}, tmp_path / "learner.pt")
    with pytest.raises(ConfigError, match="no weights at"):
        load_weights(tmp_path / "learner.pt")
    with pytest.raises(ConfigError, match="no whole checkpoint"):
        load_weights(tmp_path)
    with pytest.raises(ConfigError, match="no weights at"):
        load_weights(tmp_path / "absent.pt")


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut leaves a rename and not what it renamed, unless that was flushed before."""
    done: list[tuple[str, str]] = []
    fsync, rename = os.fsync, os.rename

    def watched_fsync(descriptor: int) -> None:
        done.append(("flushed", os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), tmp_path)))
        fsync(descriptor)

    def watched_rename(source: Path, target: Path) -> None:
        done.append(("named", os.path.relpath(target, tmp_path)))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "rename", watched_rename)
    names = [path.name for path in CheckpointStore(tmp_path).save(7, snapshot(7), score=1.0).iterdir()]
    at = done.index(("named", "checkpoints/7"))
    partial = "checkpoints/.7.partial"
    flushed = {("flushed", f"{partial}/{name}") for name in names} | {("flushed", partial), ("flushed", ".")}
    assert flushed <= set(done[:at])
    assert done[at + 1] == ("flushed", "checkpoints")
    for pointer in ("latest", "best"):
        pointed = done.index(("named", f"checkpoints/{pointer}"))
        assert pointed > at + 1
        assert ("flushed", f"checkpoints/.{pointer}.partial") in done[at:pointed]
    assert done[-1] == ("flushed", "checkpoints")
