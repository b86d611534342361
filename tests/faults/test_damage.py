"""Damaged and hostile checkpoints: every altered bit is seen, nothing runs, nothing grows, and one line says why."""

from __future__ import annotations

import collections
import io
import json
import math
import os
import pickle
import random
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.make import env_spec
from atari_dqn.envs.protocol import PROTOCOLS
from atari_dqn.runs import checkpoint_files
from atari_dqn.runs.archive import MOST_PICKLE, Unsound, load_tensors
from atari_dqn.runs.checkpoint_files import MANIFEST, Snapshot
from atari_dqn.runs.checkpoints import CheckpointStore, load_weights
from atari_dqn.runs.directory import check_run_dir
from atari_dqn.training.assembly import local_trainer
from atari_dqn.training.snapshot import init_from
from atari_dqn.training.trainer import Trainer
from tests.test_train import SHORT, run

CPU = torch.device("cpu")
MOST = 1 << 23


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
def whole(tmp_path: Path) -> Path:
    return CheckpointStore(tmp_path / "whole").save(7, snapshot(7), score=1.5)


def reason(directory: Path) -> str:
    """Why the checkpoint is refused, as one line; empty when it is taken."""
    try:
        checkpoint_files.check(directory)
    except (Unsound, ConfigError) as error:
        return str(error).replace("\n", "a second line")
    return ""


@pytest.mark.parametrize("flips", [50, pytest.param(1_000, marks=pytest.mark.slow)])
def test_every_flipped_bit_is_refused(whole: Path, flips: int) -> None:
    """50 in each of six files, the manifest among them, are 300; whatever the bit, nothing else is raised."""
    chance = random.Random(5)
    assert reason(whole) == ""
    for path in sorted(whole.iterdir()):
        content = path.read_bytes()
        for place in chance.sample(range(8 * len(content)), min(flips, 8 * len(content))):
            altered = bytearray(content)
            altered[place // 8] ^= 1 << place % 8
            path.write_bytes(altered)
            assert reason(whole), f"{path.name}, bit {place}"
        path.write_bytes(content)
    assert reason(whole) == ""


@pytest.mark.slow
def test_every_bit_of_the_manifest_counts(whole: Path) -> None:
    path = whole / MANIFEST
    content = path.read_bytes()
    for place in range(8 * len(content)):
        altered = bytearray(content)
        altered[place // 8] ^= 1 << place % 8
        path.write_bytes(altered)
        assert reason(whole), f"bit {place}"


def test_truncation_at_100_places_is_refused(whole: Path) -> None:
    chance = random.Random(6)
    for path in sorted(whole.iterdir()):
        content = path.read_bytes()
        for length in chance.sample(range(len(content)), min(100, len(content))):
            path.write_bytes(content[:length])
            assert reason(whole), f"{path.name}, {length} bytes"
        path.write_bytes(content + b"\n")
        assert reason(whole), f"{path.name}, one byte more"
        path.write_bytes(content)


def rewrite_manifest(directory: Path, change: Callable[[dict[str, Any]], None], sound: bool = True) -> None:
    """Change what the manifest says, and sum it anew: somebody who means harm can."""
    content = json.loads((directory / MANIFEST).read_text())
    del content["sha256"]
    change(content)
    total = checkpoint_files._sum_of(content) if sound else "0" * 64
    (directory / MANIFEST).write_bytes(checkpoint_files._dump(content | {"sha256": total}))


def reseal(directory: Path) -> None:
    """Make the manifest agree with the files as they are now."""

    def change(content: dict[str, Any]) -> None:
        for name, entry in content["files"].items():
            summing = checkpoint_files._Summing(io.BytesIO())
            summing.write((directory / name).read_bytes())
            entry |= {"sha256": summing.entry(name)["sha256"], "bytes": (directory / name).stat().st_size}

    rewrite_manifest(directory, change)


def test_another_version_is_refused_by_name_and_not_taken_for_damage(whole: Path) -> None:
    store = CheckpointStore(whole.parents[1])
    for change, message in (
        (lambda content: content.update(format=3), "is of format 3, and this version of atari_dqn reads format 2"),
        (lambda content: content["files"]["replay.pt"].update(format=9), "replay.pt is of format 9"),
    ):
        shutil.copytree(whole, store.directory / "8")
        rewrite_manifest(store.directory / "8", change)
        with pytest.raises(ConfigError, match=message):
            store.load_newest(CPU, empty_frames())
        assert store.steps() == [7, 8], "it is whole, and stays where it is"
        shutil.rmtree(store.directory / "8")
    (whole / MANIFEST).write_text(json.dumps(dict.fromkeys(checkpoint_files.FORMATS, "0" * 64)))
    assert "has no format: an earlier version" in reason(whole)


def test_a_manifest_cannot_lead_elsewhere_nor_keep_us_busy(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    for change in (
        lambda content: content["files"].update({"../../../secret": content["files"].pop("learner.pt")}),
        lambda content: content["files"].update({str(tmp_path / "secret"): content["files"]["learner.pt"]}),
        lambda content: content.update(files=[1]),
        lambda content: content["files"].update({"learner.pt": 5}),
        lambda content: content["files"]["learner.pt"].update(bytes="many"),
        lambda content: content["files"]["learner.pt"].update(sha256=None),
        lambda content: content["files"]["learner.pt"].pop("bytes"),
        lambda content: content.update(padding="x" * 2**17),
    ):
        copy = shutil.copytree(whole, tmp_path / "copy")
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
        (whole / MANIFEST).write_text(text)
        assert reason(whole)


@pytest.mark.parametrize("name", ["learner.pt", "counters.json", MANIFEST])
def test_a_link_a_pipe_or_a_directory_is_no_file_of_a_checkpoint(whole: Path, tmp_path: Path, name: str) -> None:
    (whole / name).rename(tmp_path / "elsewhere")
    (whole / name).symlink_to(tmp_path / "elsewhere")
    assert f"{name} is no file" in reason(whole)
    (whole / name).unlink()
    os.mkfifo(whole / name)  # reading it would wait for good
    assert f"{name} is no file" in reason(whole)
    (whole / name).unlink()
    (whole / name).mkdir()
    assert f"{name} is no file" in reason(whole)


class Runs:
    """Unpickled by a careless reader, it leaves a directory."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


class Grows:
    """Unpickled by a careless reader, it takes a terabyte."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (1 << 40,)


class Broadcast:
    """A tensor that claims more elements than its storage has, by strides of 0 or without."""

    def __init__(self, size: int, stride: int, stored: int) -> None:
        self.size, self.stride, self.stored = size, stride, stored


def archive(
    file: Path, content: Any, compression: int = zipfile.ZIP_STORED, extra: bytes = b"", pickled: str = "data.pkl"
) -> Path:
    """What torch.save would make of `content`, if it let us."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, thing: Any) -> Any:
            if isinstance(thing, tuple) and thing[:1] == ("stored",):
                return ("storage", torch.FloatStorage, "0", "cpu", thing[1])
            return None

        def reducer_override(self, thing: Any) -> Any:
            if isinstance(thing, Broadcast):
                storage = ("stored", thing.stored)
                sizes: tuple[Any, ...] = (0, (thing.size,), (thing.stride,), False, collections.OrderedDict())
                return torch._utils._rebuild_tensor_v2, (storage, *sizes)
            return NotImplemented

    text = io.BytesIO()
    Pickler(text, protocol=2).dump(content)
    with zipfile.ZipFile(file, "w", compression) as opened:
        members = {pickled: text.getvalue(), "data/0": bytes(16), "byteorder": b"little", "version": b"3\n"}
        for name, member in (members | ({"data/1": extra} if extra else {})).items():
            opened.writestr(f"archive/{name}", member)
    return file


def many_members(file: Path) -> None:
    with zipfile.ZipFile(file, "w") as opened:
        for number in range(20_000):
            opened.writestr(f"archive/data/{number}", b"")


@pytest.fixture
def little_memory() -> Iterator[None]:
    """The process may take 2 GB beyond what it has: whatever would take a terabyte fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.usefixtures("little_memory")
def test_a_hostile_archive_runs_nothing_and_takes_no_memory(tmp_path: Path) -> None:
    file, trace = tmp_path / "learner.pt", tmp_path / "trace"
    archive(file, {"online": {"weight": Broadcast(4, 1, 4)}})
    assert load_tensors(file, CPU, MOST)["online"]["weight"].shape == (4,), "the forger knows the trade"
    refused: list[tuple[str, Callable[[], object]]] = [
        ("names posix mkdir", lambda: archive(file, {"online": Runs(trace)})),
        ("names __builtin__ bytearray", lambda: archive(file, {"online": Grows()})),
        ("has compressed members", lambda: archive(file, {"online": {}}, zipfile.ZIP_DEFLATED, bytes(1 << 28))),
        ("bytes; at most", lambda: archive(file, {"online": {}}, extra=bytes(1 << 24))),
        ("no archive of tensors", lambda: archive(file, {"online": {"weight": Broadcast(4, 1, 1 << 40)}})),
        ("no archive of tensors", lambda: archive(file, {"online": {"weight": Broadcast(1 << 40, 1, 4)}})),
        ("names __builtin__ bytearray", lambda: archive(file, {"online": Grows()}, pickled="DATA.PKL")),
        ("is no archive$", lambda: file.write_bytes(pickle.dumps({"online": Runs(trace)}))),
        ("is no archive$", lambda: file.write_bytes(pickle.dumps(Grows()) + archive(file, {}).read_bytes())),
        ("is no archive$", lambda: file.write_bytes(b"PK\x03\x04" + bytes(100))),
        ("too many members", lambda: many_members(file)),
        ("holds no dict", lambda: archive(file, [1, 2])),
        ("a pickle of", lambda: archive(file, {"online": "x" * (MOST_PICKLE + 1)})),
    ]
    for message, forge in refused:
        forge()
        with pytest.raises(Unsound, match=message) as caught:
            load_tensors(file, CPU, MOST)
        assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_members_that_overlap_or_share_a_name_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "learner.pt"
    content = archive(file, {"online": {}}).read_bytes()
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(file, "a") as opened:
        opened.writestr("archive/data.pkl", b"")
    with pytest.raises(Unsound, match="two members of one name"):
        load_tensors(file, CPU, MOST)
    # The directory says 4 GB of what has 16 bytes.
    at = content.index(b"PK\x01\x02", content.index(b"PK\x01\x02") + 1)
    claimed = content[: at + 20] + b"\xf0\xff\xff\xff" * 2 + content[at + 28 :]
    file.write_bytes(claimed)
    with pytest.raises(Unsound, match="larger than itself"):
        load_tensors(file, CPU, MOST)


@pytest.mark.usefixtures("little_memory")
def test_weights_of_another_shape_are_refused_before_they_are_copied(tmp_path: Path) -> None:
    trainer = cartpole()
    name = next(iter(trainer.learner.online.state_dict()))
    file = archive(tmp_path / "learner.pt", {"online": {name: Broadcast(1 << 40, 0, 4)}})
    with pytest.raises(ConfigError, match="another network's"):
        init_from(trainer, file)
    torch.save({"online": {name: torch.zeros(0)}}, file)
    with pytest.raises(ConfigError, match="another network's"):
        init_from(trainer, file)
    broken = {name: torch.full_like(tensor, math.nan) for name, tensor in trainer.learner.online.state_dict().items()}
    torch.save({"online": broken}, file)
    with pytest.raises(ConfigError, match="NaN or infinity is in"):
        init_from(trainer, file)
    trainer = cartpole()
    state = trainer.learner.state()
    huge = torch.zeros(1).expand(1 << 40)
    with pytest.raises(ConfigError, match="the optimizer's state"):
        trainer.learner.load(state | {"optimizer": {"step": torch.zeros(()), "exp_avg": huge, "exp_avg_sq": huge}})
    replay = trainer.replay.state()
    with pytest.raises(ValueError, match="the stored ring's reward"):
        trainer.replay.load(replay | {"reward": huge})


@pytest.mark.parametrize("which", ["/dev/zero", "a pipe", "a directory", "nothing"])
def test_weights_are_read_from_files_only(tmp_path: Path, which: str) -> None:
    os.mkfifo(tmp_path / "a pipe")
    (tmp_path / "a directory").mkdir()
    with pytest.raises(ConfigError):
        load_weights(tmp_path / which)


def test_frames_end_where_the_ring_does(whole: Path) -> None:
    file = whole / "frames.zst"
    content = file.read_bytes()
    looks_far_back = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27)
    ).compressobj()
    greedy = looks_far_back.compress(snapshot(7).frames.numpy().tobytes()) + looks_far_back.flush()
    for altered in (greedy, content + b"more", content + content, content[: len(content) // 2], b"", b"text"):
        file.write_bytes(altered)
        reseal(whole)
        assert reason(whole) == "", "it has the sums its owner gave it"
        with pytest.raises(ConfigError, match=r"frames\.zst"):
            CheckpointStore(whole.parents[1]).load_newest(CPU, empty_frames())
    file.write_bytes(content)
    reseal(whole)
    for rows in (-1, 31, 1 << 70, "5", None, True):
        counters = json.loads((whole / "counters.json").read_text())
        (whole / "counters.json").write_text(json.dumps(counters | {"frame_rows": rows}))
        reseal(whole)
        with pytest.raises(ConfigError, match="was written for another replay"):
            CheckpointStore(whole.parents[1]).load_newest(CPU, empty_frames())


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


def test_a_damaged_checkpoint_is_not_the_best(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step, score in ((1, float("inf")), (2, 5.0), (3, 4.0)):
        store.save(step, snapshot(step), score)
    assert store.find("best").name == "2"
    counters = store.directory / "2" / "counters.json"
    counters.write_text(counters.read_text().replace("5.0", "9.0"))
    assert store.find("best").name == "3"


def test_what_is_set_aside_twice_keeps_both(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, snapshot(1), score=None)
    for _ in range(2):
        (store.save(2, snapshot(2), score=None) / "replay.pt").write_bytes(b"")
        _, skipped = store.load_newest(CPU, empty_frames())
        assert "replay.pt has 0 bytes" in skipped[0]
    assert sorted(path.name for path in store.directory.glob("2.*")) == ["2.damaged", "2.damaged.2"]


def test_checkpoints_that_cannot_be_seen_are_not_taken_for_none(tmp_path: Path) -> None:
    """A link to a disk that is not there; or something else in their place."""
    store = CheckpointStore(tmp_path)
    store.directory.symlink_to(tmp_path / "unmounted")
    for what in ("No such file", "Not a directory"):
        with pytest.raises(ConfigError, match=what):
            store.load_newest(CPU, empty_frames())
        with pytest.raises(ConfigError, match=what):
            store.find("latest")
        store.directory.unlink()
        store.directory.touch()


def test_a_run_killed_before_its_config_was_whole_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "config.partial").write_text('{"env_id": "Cart')
    check_run_dir(TrainConfig(), tmp_path)
    (tmp_path / "else").touch()
    with pytest.raises(ConfigError, match="holds something else"):
        check_run_dir(TrainConfig(), tmp_path)


def test_a_command_that_is_given_a_hostile_file_says_one_line(tmp_path: Path) -> None:
    archive(tmp_path / "learner.pt", {"online": Runs(tmp_path / "trace")})
    result = run([*SHORT, "--run-dir", "a", "--init-from", "learner.pt"], tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: no weights at learner.pt: learner.pt holds more than tensors")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "trace").exists()


def test_a_checkpoint_that_is_whole_and_no_runs_says_one_line(tmp_path: Path) -> None:
    command = [*SHORT, "--total-env-steps", "300", "--run-dir", "a"]
    assert run(command, tmp_path).returncode == 0
    stored = CheckpointStore(tmp_path / "a").find("latest")
    rows = json.loads((stored / "counters.json").read_text())["frame_rows"]
    (stored / "counters.json").write_text(json.dumps({"frame_rows": rows, "env_steps": "many"}))
    reseal(stored)
    result = run(command, tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: the newest checkpoint in a does not fit this run: ")
    assert result.stderr.count("\n") == 1


def cartpole() -> Trainer:
    config = TrainConfig().replace(env_id="CartPole-v1", replay_capacity=256, device="cpu")
    return local_trainer(config, env_spec(config.env.env_id, PROTOCOLS[config.env.protocol], config.env.frame_stack))
