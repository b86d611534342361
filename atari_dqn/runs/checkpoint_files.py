"""One checkpoint as files: a `Snapshot` flows in, a directory with a manifest flows out, and back again.

The manifest gives each file's SHA-256, size and format, and a sum of itself, so that no altered bit goes unseen. Sums
are no signature: a whole checkpoint may still be somebody else's, so nothing in one can run code (`weights_only`, and
no pickle that names more than tensors are made of) or make us allocate more than its own size or the ring's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
import zstandard

from atari_dqn.config.setting import ConfigError, shown
from atari_dqn.runs.archive import MOST_PICKLE, Unsound, load_tensors

FORMAT = 2
"""Of a checkpoint as a whole; 1 had sums alone."""
FORMATS = {"counters.json": 1, "learner.pt": 1, "replay.pt": 1, "envs.pt": 1, "frames.zst": 1}
"""Every file of a checkpoint but the manifest, and the format it is of."""
MANIFEST = "manifest.json"

CHUNK_BYTES = 1 << 24
MOST_MANIFEST, MOST_COUNTERS, MOST_TENSORS = 1 << 16, 1 << 24, 1 << 30
"""Bytes of a file that are read: of tensors, others than the replay's."""
MOST_PER_TRANSITION = 64
"""Bytes that replay.pt may take for each; ours takes 27."""
MOST_WINDOW = 1 << 23
"""Bytes that zstd may look back; level 1 asks for 2^19."""


class OtherFormat(ConfigError):
    """A checkpoint is whole, and was written by another version of this program."""


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds. `frames` are rows of the ring's own tensor: they are streamed, never copied whole."""

    counters: dict[str, Any]
    """JSON-ready: env steps, running episodes, generator states"""
    learner: dict[str, Any]
    replay: dict[str, Any]
    frames: torch.Tensor
    envs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """numbers and tensors: what brings the emulators back; may be empty"""


def write(directory: Path, snapshot: Snapshot, score: float | None) -> None:
    """Fill the empty `directory`, and see all of it on the disk. Raises `OSError`."""
    files: dict[str, Any] = {}
    counters = {**snapshot.counters, "score": score, "frame_rows": len(snapshot.frames)}
    with _sealed(directory / "counters.json", files) as file:
        file.write(json.dumps(counters).encode())
    for name, state in (("learner.pt", snapshot.learner), ("replay.pt", snapshot.replay), ("envs.pt", snapshot.envs)):
        with _sealed(directory / name, files) as file:
            _write_tensors(file, state)
    with _sealed(directory / "frames.zst", files) as file:
        _write_frames(file, snapshot.frames)
    content = {"format": FORMAT, "files": files}
    with _sealed(directory / MANIFEST, {}) as file:
        file.write(_dump(content | {"sha256": _sum_of(content)}))
    fsync(directory)


def check(directory: Path) -> None:
    """Raise `Unsound` unless every byte of the checkpoint is as it was written; `OtherFormat` for another version's."""
    for name, entry in _manifest(directory).items():
        _check_file(directory / name, entry)


def read(directory: Path, device: torch.device, frames: torch.Tensor) -> Snapshot:
    """The checkpoint in `directory`, its frames straight in the first rows of `frames`, the ring's own tensor.

    Raises `Unsound`; and `ConfigError` when it was written for a ring of another size.
    """
    counters = _counters(directory)
    rows = counters.get("frame_rows")
    if type(rows) is not int or not 0 <= rows <= len(frames):
        raise ConfigError(f"{directory} was written for another replay: of {shown(rows)} rows, not {len(frames)}")
    transitions = math.prod(frames.shape[:2])
    learner = load_tensors(directory / "learner.pt", device, MOST_TENSORS)
    replay = load_tensors(directory / "replay.pt", "cpu", MOST_PER_TRANSITION * transitions + MOST_PICKLE)
    envs = load_tensors(directory / "envs.pt", "cpu", MOST_TENSORS)
    _read_frames(directory / "frames.zst", frames[:rows])
    return Snapshot(counters, learner, replay, frames[:rows], envs)


def score(directory: Path) -> float | None:
    """Of the checkpoint, read from `counters.json` alone; None when there is none, or that file is not as written."""
    try:
        _check_file(directory / "counters.json", _manifest(directory)["counters.json"])
        score = _counters(directory)["score"]
        return float(score) if score is not None and math.isfinite(score) else None
    except (Unsound, OtherFormat, LookupError, TypeError, ValueError, OverflowError):
        return None


def fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _Summing:
    """A file being written: what passes is summed and counted on its way."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sum, self._bytes = hashlib.sha256(), 0
        self.failure: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self._file.write(data)
        except OSError as error:
            self.failure = error
            raise
        self._sum.update(data)
        self._bytes += memoryview(data).nbytes
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Nothing: torch asks for it; the file is flushed once, at its end."""

    def entry(self, name: str) -> dict[str, Any]:
        return {"sha256": self._sum.hexdigest(), "bytes": self._bytes, "format": FORMATS.get(name)}


@contextlib.contextmanager
def _sealed(path: Path, files: dict[str, Any]) -> Iterator[_Summing]:
    with path.open("wb") as file:
        summing = _Summing(file)
        yield summing
        file.flush()
        os.fsync(file.fileno())
    files[path.name] = summing.entry(path.name)


def _dump(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()


def _sum_of(content: dict[str, Any]) -> str:
    return hashlib.sha256(_dump(content)).hexdigest()


def _json(path: Path, most_bytes: int) -> tuple[bytes, dict[str, Any]]:
    try:
        if not stat.S_ISREG(path.lstat().st_mode):
            raise Unsound(f"{path.name} is no file")
        with path.open("rb") as file:
            text = file.read(most_bytes)  # a larger one is cut, and then is no JSON
        content = json.loads(text)
    except OSError as error:
        raise Unsound(f"{path.name}: {error.strerror}") from None
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise Unsound(f"{path.name} is not what a checkpoint has under that name")
    return text, content


def _counters(directory: Path) -> dict[str, Any]:
    return _json(directory / "counters.json", MOST_COUNTERS)[1]


def _manifest(directory: Path) -> dict[str, dict[str, Any]]:
    """What it says of each file: sha256, bytes, format."""
    text, content = _json(directory / MANIFEST, MOST_MANIFEST)
    unsummed = {name: value for name, value in content.items() if name != "sha256"}
    if "format" not in content:
        raise Unsound(f"{MANIFEST} has no format: an earlier version of atari_dqn wrote it, or none did")
    try:
        # Spelled otherwise is altered, too: a flipped bit of white space shows.
        sound = _dump(content) == text and content.get("sha256") == _sum_of(unsummed)
    except RecursionError:
        sound = False
    if not sound:
        raise Unsound(f"{MANIFEST} does not match its own checksum")
    if content["format"] != FORMAT:
        raise OtherFormat(
            f"{directory} is of format {shown(content['format'])}, and this version of atari_dqn reads format {FORMAT};"
            " take the version that wrote it"
        )
    files: dict[str, dict[str, Any]] = content["files"] if isinstance(content.get("files"), dict) else {}
    if set(files) != set(FORMATS) or not all(isinstance(entry, dict) for entry in files.values()):
        raise Unsound(f"{MANIFEST} does not name the {len(FORMATS)} files of a checkpoint")
    for name, entry in files.items():
        if entry.get("format") != FORMATS[name]:
            raise OtherFormat(
                f"{directory / name} is of format {shown(entry.get('format'))}, and this version of atari_dqn reads"
                f" format {FORMATS[name]}; take the version that wrote it"
            )
    return files


def _check_file(path: Path, entry: dict[str, Any]) -> None:
    try:
        facts = path.lstat()  # not beyond a link: a checkpoint is all in one directory
        if not stat.S_ISREG(facts.st_mode):
            raise Unsound(f"{path.name} is no file")
        if facts.st_size != entry.get("bytes"):
            raise Unsound(f"{path.name} has {facts.st_size:,} bytes, not {shown(entry.get('bytes'))}")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.get("sha256"):
                raise Unsound(f"{path.name} does not match its checksum")
    except OSError as error:
        raise Unsound(f"{path.name}: {error.strerror}") from None


def _write_tensors(file: _Summing, state: dict[str, Any]) -> None:
    try:
        torch.save(state, file)  # type: ignore[arg-type]  # all it does is write
    except RuntimeError:
        if file.failure is not None:  # torch buries it under a complaint of its own
            raise file.failure from None
        raise


def _chunks(frames: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of whole rows, each of about `CHUNK_BYTES`."""
    yield from frames.split(max(1, CHUNK_BYTES * len(frames) // max(1, frames.nbytes)))


def _bytes_of(chunk: torch.Tensor) -> memoryview:
    return chunk.cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _write_frames(file: _Summing, frames: torch.Tensor) -> None:
    # Level 1 shrinks Atari frames 50 to 230 times at gigabytes a second; higher levels cost minutes for little.
    with zstandard.ZstdCompressor(level=1).stream_writer(file, closefd=False) as writer:  # type: ignore[arg-type]
        for chunk in _chunks(frames):
            writer.write(_bytes_of(chunk))


def _read_frames(path: Path, frames: torch.Tensor) -> None:
    reader_of = zstandard.ZstdDecompressor(max_window_size=MOST_WINDOW).stream_reader
    try:
        with path.open("rb") as file, reader_of(file, read_across_frames=True) as reader:
            for chunk in _chunks(frames):
                buffer = torch.empty(chunk.shape, dtype=chunk.dtype)
                view, filled = _bytes_of(buffer), 0
                while filled < len(view):
                    count = reader.readinto(view[filled:])
                    if not count:
                        raise Unsound(f"{path.name} ends early, or was written for a smaller replay")
                    filled += count
                chunk.copy_(buffer)
            if reader.read(1):
                raise Unsound(f"{path.name} goes on past its last frame, or was written for a larger replay")
    except (zstandard.ZstdError, OSError) as error:
        raise Unsound(f"{path.name} cannot be read: {error}") from None
