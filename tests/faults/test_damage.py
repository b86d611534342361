"""Corrupt and hostile checkpoints: every altered bit is found, no code runs, memory is bounded, one line says why."""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import spec_of
from atari_dqn.runs import checkpoint_files
from atari_dqn.runs.checkpoint_files import (
    FILES,
    FRAMES,
    MANIFEST,
    STATE,
    CorruptError,
    Snapshot,
    load_tensors,
    tensor_bytes,
)
from atari_dqn.runs.checkpoints import CheckpointStore, load_weights
from atari_dqn.runs.directory import LEARNER, check_run_dir
from atari_dqn.training.assembly import local_trainer
from atari_dqn.training.snapshot import init_from
from atari_dqn.training.trainer import Trainer
from tests.test_train import SHORT, run


def snapshot(step: int) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    return Snapshot(
        counters={"env_steps": step, "live": {}},
        learner={"online": {"weight": torch.randn(10, 12, generator=generator)}, "updates": step},
        replay={"leaves": torch.rand(256, dtype=torch.float64, generator=generator), "newest": step},
        frames=torch.randint(0, 3, (30, 2, 12, 12), dtype=torch.uint8, generator=generator),
        envs={"actions": torch.arange(100)},
    )


def empty_frames() -> torch.Tensor:
    return torch.zeros(30, 2, 12, 12, dtype=torch.uint8)


@pytest.fixture
def valid(tmp_path: Path) -> Path:
    return CheckpointStore(tmp_path / "valid").save(7, snapshot(7), score=1.5)


def reason(directory: Path) -> str:
    """Why the checkpoint is refused, as one line; empty when it is valid."""
    try:
        checkpoint_files.check(directory)
    except (CorruptError, ConfigError) as error:
        return str(error).replace("\n", "a second line")
    return ""


@pytest.mark.parametrize("flips", [50, pytest.param(1_000, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_refused(valid: Path, flips: int) -> None:
    """50 in each of six files, including the manifest, are 300."""
    chance = random.Random(5)
    assert reason(valid) == ""
    for path in sorted(valid.iterdir()):
        content = path.read_bytes()
        for place in chance.sample(range(8 * len(content)), min(flips, 8 * len(content))):
            altered = bytearray(content)
            altered[place // 8] ^= 1 << place % 8
            path.write_bytes(altered)
            assert reason(valid), f"{path.name}, bit {place}"
        path.write_bytes(content)
    assert reason(valid) == ""


@pytest.mark.slow
def test_every_bit_of_the_manifest_counts(valid: Path) -> None:
    path = valid / MANIFEST
    content = path.read_bytes()
    for place in range(8 * len(content)):
        altered = bytearray(content)
        altered[place // 8] ^= 1 << place % 8
        path.write_bytes(altered)
        assert reason(valid), f"bit {place}"


def test_truncation_at_100_places_is_refused(valid: Path) -> None:
    chance = random.Random(6)
    for path in sorted(valid.iterdir()):
        content = path.read_bytes()
        for length in chance.sample(range(len(content)), min(100, len(content))):
            path.write_bytes(content[:length])
            assert reason(valid), f"{path.name}, {length} bytes"
        path.write_bytes(content + b"\n")
        assert reason(valid), f"{path.name}, one byte more"
        path.write_bytes(content)


def rewrite_manifest(directory: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest and seal it again, as anybody can."""
    content = json.loads((directory / MANIFEST).read_text())
    del content["sha256"]
    change(content)
    (directory / MANIFEST).write_bytes(checkpoint_files._seal(content))


def reseal(directory: Path) -> None:
    """Make the manifest agree with the files as they are now."""
    files = {name: checkpoint_files._entry(directory / name) for name in FILES}
    rewrite_manifest(directory, lambda content: content.update(files=files))


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (2, r"written by an older version of atari_dqn \(format 2\); this version reads format 3; use the version"),
        (4, r"written by another version of atari_dqn \(format 4\); this version reads format 3; use the version"),
    ],
)
def test_another_format_is_refused_in_one_line_and_not_taken_for_corrupt(
    valid: Path, number: object, message: str
) -> None:
    store = CheckpointStore(valid.parents[1])
    shutil.copytree(valid, store.directory / "8")
    rewrite_manifest(store.directory / "8", lambda content: content.update(format=number))
    for use in (lambda: store.load_newest(empty_frames()), lambda: store.find("8"), store.newest_valid):
        with pytest.raises(ConfigError, match=message) as caught:
            use()
        assert "\n" not in str(caught.value)
    assert store.steps() == [7, 8], "it is valid, and stays where it is"


def test_a_checkpoint_of_format_2_as_it_was_written_is_refused_in_one_line(tmp_path: Path) -> None:
    """Its manifest sealed itself in the same way and had a format for each file; its tensors were pickled."""
    directory = tmp_path / "checkpoints" / "9"
    directory.mkdir(parents=True)
    torch.save({"online": {}}, directory / "learner.pt")
    files = {"learner.pt": {**checkpoint_files._entry(directory / "learner.pt"), "format": 1}}
    (directory / MANIFEST).write_bytes(checkpoint_files._seal({"format": 2, "files": files}))
    for use in (lambda: CheckpointStore(tmp_path).load_newest(empty_frames()), lambda: load_weights(directory)):
        with pytest.raises(ConfigError, match=r"/9 was written by an older version of atari_dqn \(format 2\)"):
            use()


def test_a_manifest_cannot_lead_elsewhere_nor_keep_us_busy(valid: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    for change in (
        lambda content: content["files"].update({"../../../secret": content["files"].pop(LEARNER)}),
        lambda content: content["files"].update({str(tmp_path / "secret"): content["files"].pop(LEARNER)}),
        lambda content: content.update(files=[1]),
        lambda content: content.pop("files"),
        lambda content: content.pop("format"),
        lambda content: content["files"].update({LEARNER: 5}),
        lambda content: content["files"][LEARNER].update(bytes="many"),
        lambda content: content["files"][LEARNER].update(sha256=None),
        lambda content: content["files"][LEARNER].pop("bytes"),
    ):
        copy = shutil.copytree(valid, tmp_path / "copy")
        rewrite_manifest(copy, change)
        assert reason(copy)
        shutil.rmtree(copy)
    for text in (
        "[" * 20_000,
        '{"format":' * 5_000,
        "{}",
        "[]",
        "null",
        "",
        '{"format": ' + "9" * 5_000 + "}",
        "x" * 2**17,
    ):
        (valid / MANIFEST).write_text(text)
        assert reason(valid)


@pytest.mark.parametrize("name", [LEARNER, STATE, MANIFEST])
def test_a_pipe_or_a_directory_is_not_a_file_of_a_checkpoint_but_a_link_to_one_is(
    valid: Path, tmp_path: Path, name: str
) -> None:
    (valid / name).rename(tmp_path / "elsewhere")
    (valid / name).symlink_to(tmp_path / "elsewhere")
    assert reason(valid) == ""
    (valid / name).unlink()
    os.mkfifo(valid / name)  # reading it would block for good
    assert f"{name} is not a regular file" in reason(valid)
    (valid / name).unlink()
    (valid / name).mkdir()
    assert f"{name} is not a regular file" in reason(valid)


class Runs:
    """Unpickled, it creates a directory."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def safetensors_file(header: object, content: bytes = b"", length: int | None = None) -> bytes:
    """The content of a safetensors file with any header, and any length of it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + content


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"online/weight": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.fixture
def little_memory() -> Iterator[None]:
    """The process may take 2 GB beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


HOSTILE = {
    "empty": b"",
    "shorter than a length": b"\x01\x02",
    "a header that is longer than the file": safetensors_file(tensor([4], [0, 16]), bytes(16), length=1 << 20),
    "a header of 2^63 bytes": safetensors_file(tensor([4], [0, 16]), bytes(16), length=1 << 63),
    "a header of a terabyte": safetensors_file(tensor([4], [0, 16]), bytes(16), length=1 << 40),
    "a header that is not JSON": safetensors_file(b"text"),
    "a header that is not UTF-8": safetensors_file(b"\xff" * 8),
    "a deep header": safetensors_file(b"[" * 100_000),
    "a header that is a list": safetensors_file([1, 2]),
    "a tensor beyond its bytes": safetensors_file(tensor([1 << 38], [0, 1 << 40]), bytes(16)),
    "a shape beyond its bytes": safetensors_file(tensor([1 << 38], [0, 16]), bytes(16)),
    "a shape that overflows": safetensors_file(tensor([1 << 40, 1 << 40], [0, 16]), bytes(16)),
    "a negative shape": safetensors_file(tensor([-4], [0, 16]), bytes(16)),
    "an unknown dtype": safetensors_file(tensor([4], [0, 16], "PICKLE"), bytes(16)),
    "bytes that belong to no tensor": safetensors_file(tensor([4], [0, 16]), bytes(1 << 16)),
    "offsets in the wrong order": safetensors_file(tensor([4], [16, 0]), bytes(16)),
    "a pickle": pickle.dumps(Runs(Path("trace"))),
}


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize("which", HOSTILE)
def test_a_hostile_file_of_tensors_is_refused_in_one_line(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / LEARNER
    file.write_bytes(safetensors_file(tensor([4], [0, 16]), bytes(16)))
    assert load_tensors(file)["online/weight"].shape == (4,), "the forgery works where it should"
    file.write_bytes(HOSTILE[which])
    with pytest.raises(CorruptError, match=rf"^{LEARNER} cannot be read: ") as caught:
        load_tensors(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert not (tmp_path / "trace").exists()


@pytest.mark.usefixtures("little_memory")
def test_a_flipped_header_is_read_or_refused_in_one_line(tmp_path: Path) -> None:
    """Without the manifest, which would reveal any flip."""
    tensors = {
        "a": torch.rand(3, 5),
        "b": torch.arange(7),
        "c": torch.rand(4, dtype=torch.float64),
        "d": torch.ones(()),
    }
    content = tensor_bytes(tensors)
    file = tmp_path / LEARNER
    chance, refusals = random.Random(7), []
    header = 8 + int.from_bytes(content[:8], "little")
    for place in chance.sample(range(8 * header), 1_000):
        altered = bytearray(content)
        altered[place // 8] ^= 1 << place % 8
        file.write_bytes(altered)
        try:
            found = load_tensors(file)
        except CorruptError as error:
            refusals.append(str(error))
        else:
            assert sum(one.nbytes for one in found.values()) <= len(content)
    assert len(refusals) > 500
    assert not [line for line in refusals if "\n" in line]


def test_a_huge_sparse_file_takes_no_memory(tmp_path: Path) -> None:
    """64 GB that need no disk: where the system lets us map them, their shape is wrong for any network."""
    size = 1 << 36
    header = json.dumps(tensor([size // 4], [0, size])).encode()
    with (tmp_path / LEARNER).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    before = _resident_bytes()
    with pytest.raises(ConfigError, match=r"of another network|unable to mmap"):
        init_from(cartpole(), tmp_path / LEARNER)
    assert _resident_bytes() - before < 1 << 30


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.usefixtures("little_memory")
def test_weights_of_another_shape_are_refused_before_they_are_copied(tmp_path: Path) -> None:
    trainer = cartpole()
    own = trainer.learner.online.state_dict()
    name = next(iter(own))
    file = tmp_path / LEARNER
    file.write_bytes(tensor_bytes({f"online/{name}": torch.zeros(0)}))
    with pytest.raises(ConfigError, match="of another network"):
        init_from(trainer, file)
    file.write_bytes(
        tensor_bytes({f"online/{name}": torch.full_like(weight, math.nan) for name, weight in own.items()})
    )
    with pytest.raises(ConfigError, match="NaN or infinity is in"):
        init_from(trainer, file)
    trainer = cartpole()
    state = trainer.learner.state()
    huge = torch.zeros(1).expand(1 << 40)
    with pytest.raises(ConfigError, match="the optimizer's state"):
        trainer.learner.load(state | {"optimizer": {"step": torch.zeros(()), "exp_avg": huge, "exp_avg_sq": huge}})
    replay = trainer.replay.state()
    with pytest.raises(ValueError, match="the stored ring"):
        trainer.replay.load(replay | {"reward": huge})


@pytest.mark.parametrize("which", ["/dev/zero", "a pipe", "a directory", "nothing"])
def test_weights_are_read_from_files_only(tmp_path: Path, which: str) -> None:
    os.mkfifo(tmp_path / "a pipe")
    (tmp_path / "a directory").mkdir()
    with pytest.raises(ConfigError):
        load_weights(tmp_path / which)


def test_a_state_that_does_not_belong_to_the_tensors_is_refused(valid: Path) -> None:
    state = json.loads((valid / STATE).read_text())
    for altered in ({"frame_rows": 30}, state | {"learner": 5}, state | {"learner": {"online": 5}}):
        (valid / STATE).write_text(json.dumps(altered))
        reseal(valid)
        assert reason(valid) == ""
        with pytest.raises(ConfigError, match=r"passes its checksums but cannot be read: state\.json") as caught:
            CheckpointStore(valid.parents[1]).load_newest(empty_frames())
        assert "\n" not in str(caught.value)


def test_frames_end_where_the_ring_does(valid: Path) -> None:
    file = valid / FRAMES
    content = file.read_bytes()
    looks_far_back = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27)
    ).compressobj()
    greedy = looks_far_back.compress(snapshot(7).frames.numpy().tobytes()) + looks_far_back.flush()
    for altered in (greedy, content + b"more", content + content, content[: len(content) // 2], b"", b"text"):
        file.write_bytes(altered)
        reseal(valid)
        assert reason(valid) == "", "its checksums are right"
        with pytest.raises(ConfigError, match=r"frames\.zst"):
            CheckpointStore(valid.parents[1]).load_newest(empty_frames())
    file.write_bytes(content)
    reseal(valid)
    for rows in (-1, 31, 1 << 70, "5", None, True):
        state = json.loads((valid / STATE).read_text())
        (valid / STATE).write_text(json.dumps(state | {"frame_rows": rows}))
        reseal(valid)
        with pytest.raises(ConfigError, match="was written for a replay of"):
            CheckpointStore(valid.parents[1]).load_newest(empty_frames())


def test_a_torn_pointer_does_not_matter(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    for step, score in ((1, 9.0), (2, 1.0), (3, 2.0)):
        store.save(step, snapshot(step), score)
        for pointer in ("latest", "best"):
            (store.directory / pointer).write_bytes(b"\xff3")
    assert store.steps() == [1, 3]
    assert store.find("latest").name == "3"
    assert store.find("best").name == "1"
    assert (store.save(4, snapshot(4), 3.0).parent / "best").read_text() == "1"


def test_a_corrupt_manifest_is_not_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step, score in ((1, float("inf")), (2, 5.0), (3, 4.0)):
        store.save(step, snapshot(step), score)
    assert store.find("best").name == "2"
    manifest = store.directory / "2" / MANIFEST
    manifest.write_text(manifest.read_text().replace("5.0", "9.0"))
    assert store.find("best").name == "3"


def test_two_corrupt_checkpoints_of_an_env_step_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, snapshot(1), score=None)
    for _ in range(2):
        (store.save(2, snapshot(2), score=None) / "replay.safetensors").write_bytes(b"")
        _, skipped = store.load_newest(empty_frames())
        assert "replay.safetensors does not match its checksum" in skipped[0]
    assert sorted(path.name for path in store.directory.glob("2.*")) == ["2.corrupt", "2.corrupt.2"]


def test_checkpoints_that_cannot_be_seen_are_not_taken_for_absent(tmp_path: Path) -> None:
    """A link to a disk that is not mounted, or a file in their place."""
    store = CheckpointStore(tmp_path)
    store.directory.symlink_to(tmp_path / "unmounted")
    for what in ("No such file", "Not a directory"):
        with pytest.raises(ConfigError, match=what):
            store.load_newest(empty_frames())
        with pytest.raises(ConfigError, match=what):
            store.find("latest")
        store.directory.unlink()
        store.directory.touch()


def test_a_run_killed_before_its_config_was_complete_starts_over(tmp_path: Path) -> None:
    (tmp_path / "config.partial").write_text('{"env_id": "Cart')
    check_run_dir(TrainConfig(), tmp_path)
    (tmp_path / "else").touch()
    with pytest.raises(ConfigError, match="is not a run directory"):
        check_run_dir(TrainConfig(), tmp_path)


def test_a_command_that_is_given_a_hostile_file_says_one_line(tmp_path: Path) -> None:
    torch.save({"online": Runs(tmp_path / "trace")}, tmp_path / "learner.safetensors")
    result = run([*SHORT, "--run-dir", "a", "--init-from", "learner.safetensors"], tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: no weights in learner.safetensors: learner.safetensors cannot be read")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "trace").exists()


def test_a_valid_checkpoint_that_does_not_fit_says_one_line(tmp_path: Path) -> None:
    command = [*SHORT, "--total-env-steps", "300", "--run-dir", "a"]
    assert run(command, tmp_path).returncode == 0
    stored = CheckpointStore(tmp_path / "a").find("latest")
    state = json.loads((stored / STATE).read_text())
    (stored / STATE).write_text(json.dumps(state | {"counters": {"env_steps": "many"}}))
    reseal(stored)
    result = run(command, tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: the newest checkpoint in a does not fit this run: ")
    assert result.stderr.count("\n") == 1


def cartpole() -> Trainer:
    config = TrainConfig().replace(env_id="CartPole-v1", replay_capacity=256, device="cpu")
    return local_trainer(config, spec_of(config.env))
