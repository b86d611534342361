"""Checkpoints: exact round trips, the newest valid one, removal of old ones, durability."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from atari_dqn.config.setting import ConfigError
from atari_dqn.runs.checkpoint_files import FILES, MANIFEST, Snapshot, tensor_bytes
from atari_dqn.runs.checkpoints import CheckpointStore, load_weights
from atari_dqn.runs.directory import LEARNER


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
    loaded, skipped = store.load_newest(empty_frames())
    assert skipped == []
    assert loaded is not None
    assert loaded.counters["env_steps"] == 7
    assert torch.equal(loaded.learner["online"]["weight"], saved.learner["online"]["weight"])
    assert torch.equal(loaded.replay["leaves"], saved.replay["leaves"])
    assert torch.equal(loaded.frames, saved.frames)


def test_an_empty_directory_has_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path).load_newest(empty_frames()) == (None, [])
    with pytest.raises(ConfigError, match="no checkpoint in"):
        CheckpointStore(tmp_path).find("latest")


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_the_newest_valid_checkpoint_is_loaded_and_a_corrupt_one_named(tmp_path: Path, name: str, damage: str) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, snapshot(1), score=None)
    file = store.save(2, snapshot(2), score=None) / name
    content = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    else:
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    loaded, skipped = store.load_newest(empty_frames())
    assert loaded is not None
    assert loaded.counters["env_steps"] == 1
    assert len(skipped) == 1
    assert "2 skipped" in skipped[0]
    assert [path.name for path in store.directory.glob("*.corrupt")] == ["2.corrupt"]


def test_a_checkpoint_saved_behind_a_corrupt_one_stays(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for step in (1, 20, 30):
        store.save(step, snapshot(step), score=None)
        if step > 1:
            (store.directory / str(step) / LEARNER).write_bytes(b"damaged")
        else:
            shutil.copytree(store.directory / "1", tmp_path / "kept")
    shutil.copytree(tmp_path / "kept", store.directory / "1", dirs_exist_ok=True)
    loaded, skipped = store.load_newest(empty_frames())
    assert loaded is not None
    assert loaded.counters["env_steps"] == 1
    assert len(skipped) >= 1
    store.save(2, snapshot(2), score=None)
    assert store.find("latest").name == "2"
    again, skipped = store.load_newest(empty_frames())
    assert again is not None
    assert again.counters["env_steps"] == 2
    assert skipped == []


def test_the_checkpoint_saved_last_stays_whatever_its_number(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    store.save(30, snapshot(30), score=None)
    store.save(2, snapshot(2), score=None)
    assert store.steps() == [2, 30]


def test_a_run_whose_checkpoints_are_all_corrupt_is_not_started_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    (store.save(1, snapshot(1), score=None) / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="no valid checkpoint in"):
        store.load_newest(empty_frames())


def test_an_interrupted_save_is_not_seen(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    shutil.copytree(store.save(1, snapshot(1), score=None), store.directory / ".2.partial")
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


def test_the_newest_is_the_one_of_most_env_steps_not_the_last_by_name(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (99, 900, 1000):
        store.save(step, snapshot(step), score=5.0)
    assert store.steps() == [900, 1000]
    newest, _ = store.newest_valid()
    loaded, _ = store.load_newest(empty_frames())
    assert newest is not None
    assert loaded is not None
    assert (newest.name, loaded.counters["env_steps"]) == ("1000", 1000)
    for which in ("latest", "best"):
        assert store.find(which).name == (store.directory / which).read_text() == "1000"
    with pytest.raises(ConfigError, match="one of 900, 1000"):
        store.find("99")


def test_weights_are_read_from_a_learners_file_or_a_valid_checkpoint(tmp_path: Path) -> None:
    file = tmp_path / LEARNER
    weights = {"conv.weight": torch.rand(2, 3), "bias": torch.rand(2).to(torch.bfloat16)}
    file.write_bytes(
        tensor_bytes({**{f"online/{name}": weight for name, weight in weights.items()}, "x": torch.ones(1)})
    )
    found = load_weights(file)
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[name], weight) for name, weight in weights.items())
    torch.save({"online": print}, tmp_path / "learner.pt")
    contents = (
        b"",
        b"text",
        (tmp_path / "learner.pt").read_bytes(),
        tensor_bytes({}),
        tensor_bytes({"on": torch.ones(1)}),
    )
    for content in contents:
        file.write_bytes(content)
        with pytest.raises(
            ConfigError, match=r"no weights in [^\n]*give a run, the directory of one of its checkpoints, or"
        ) as caught:
            load_weights(file)
        assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"no weights in .*manifest\.json: No such file"):
        load_weights(tmp_path)
    with pytest.raises(ConfigError, match="absent: No such file"):
        load_weights(tmp_path / "absent")


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("", 1000),
        ("checkpoints", 1000),
        ("checkpoints/latest", 1000),
        ("checkpoints/best", 900),
        ("checkpoints/900", 900),
        ("checkpoints/900/learner.safetensors", 900),
    ],
)
@pytest.mark.parametrize("relative", [False, True])
def test_a_run_stands_for_its_newest_weights(
    path: str, step: int, relative: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its env step, not by its name."""
    store = CheckpointStore(tmp_path)
    for at, score in ((900, 2.0), (1000, 1.0)):
        store.save(at, snapshot(at), score)
    (tmp_path / "config.json").touch()
    monkeypatch.chdir(tmp_path)
    found = load_weights(Path(path) if relative else tmp_path / path)
    assert torch.equal(found["weight"], snapshot(step).learner["online"]["weight"])


@pytest.mark.parametrize("name", ["900", "900.corrupt"])
def test_a_learners_file_that_is_named_is_read_even_from_a_corrupt_checkpoint(name: str, tmp_path: Path) -> None:
    directory = CheckpointStore(tmp_path).save(900, snapshot(900), None)
    (tmp_path / "config.json").touch()
    (directory / "frames.zst").write_bytes(b"damaged")
    directory = directory.rename(directory.with_name(name))
    assert torch.equal(load_weights(directory / LEARNER)["weight"], snapshot(900).learner["online"]["weight"])
    with pytest.raises(ConfigError, match=r"frames\.zst does not match its checksum"):
        load_weights(directory)


def test_weights_that_a_run_does_not_have_are_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    torch.save({"online": {}}, tmp_path / "learner.pt")
    for path, words in (("", "no checkpoint in"), ("learner.pt", "no weights in .*; give a run")):
        with pytest.raises(ConfigError, match=words) as caught:
            load_weights(tmp_path / path)
        assert "\n" not in str(caught.value)


def test_a_state_keeps_its_nesting_and_every_bit_of_its_tensors(tmp_path: Path) -> None:
    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)
    learner: dict[str, Any] = {str(dtype): torch.arange(6).reshape(2, 3).t().to(dtype) for dtype in dtypes}
    vector = torch.rand(10)
    learner |= {"views": {"a": vector[:4], "b": vector[4:].view(2, 3)}, "scalar": torch.tensor(2.5), "none yet": {}}
    learner |= {"nan": torch.tensor([float("nan"), float("inf"), -0.0]), "empty": torch.zeros(0, 3), "updates": 3}
    CheckpointStore(tmp_path).save(1, Snapshot({}, learner, {}, empty_frames()), score=None)
    loaded, _ = CheckpointStore(tmp_path).load_newest(empty_frames())
    assert loaded is not None

    def same(one: Any, two: Any) -> bool:
        if isinstance(one, dict):
            return one.keys() == two.keys() and all(same(one[name], two[name]) for name in one)
        if not isinstance(one, torch.Tensor):
            return bool(one == two)
        bits = [each.contiguous().flatten().view(torch.uint8).tolist() for each in (one, two)]
        return one.dtype == two.dtype and one.shape == two.shape and bits[0] == bits[1]

    assert same(loaded.learner, learner)


def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a power cut the new name may be there without the content, unless that was flushed before."""
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
