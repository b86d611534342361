"""Files of one checkpoint: safetensors, JSON and compressed frames, sealed by a manifest of checksums.

The manifest holds each file's SHA-256 and size and a checksum of itself, and `check` compares them, so any altered bit
is found. Checksums are no signature: a valid checkpoint may still come from somebody else. Reading one runs no code and
takes no more memory than its files are large: tensors must lie within their file, and frames are decompressed straight
into the replay's ring.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

import safetensors.torch
import torch
import zstandard
from torch import Tensor

from atari_dqn.config.setting import ConfigError, shown
from atari_dqn.system.files import fsync
from atari_dqn.system.machine import is_out_of_memory

FORMAT = 3
"""Version of this layout; raise it when older code cannot read the new one. Versions 1 and 2 pickled tensors."""
MANIFEST, STATE, FRAMES = "manifest.json", "state.json", "frames.zst"
PARTS = ("learner", "replay", "envs")
"""Parts of a snapshot whose tensors go to `PART.safetensors` and whose numbers go to `state.json`."""
FILES = (STATE, FRAMES, *(f"{part}.safetensors" for part in PARTS))
"""Names of a checkpoint's files, without the manifest."""

CHUNK_BYTES = 1 << 24
"""Bytes of frames that are compressed or decompressed at a time."""
MAX_WINDOW_BYTES = 1 << 23
"""Memory that compressed frames may ask of zstd; level 1 asks for 2^19 bytes."""


class CorruptError(Exception):
    """A checkpoint, or a file of one, cannot be used; the message says why, in part of a line."""


class FormatError(ConfigError):
    """A valid checkpoint of another version of this program."""


class Counters(TypedDict, total=False):
    """The trainer's own state, JSON-ready."""

    env_steps: int
    episodes: dict[str, Any]
    evaluated: float | None
    """Mean score of the last evaluation."""
    actor: dict[str, Any]
    rate: list[float]
    """Replay ratio, batch size and learning starts, which decide how many updates are due."""
    rate_set_at: tuple[int, int]
    """Env steps and updates when that rate was set."""
    live: dict[str, Any]
    edit_lines: int
    """Number of lines in the edit log when the checkpoint was written."""
    time: float


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Contents of a checkpoint. The states are dicts, perhaps nested, of tensors and JSON-ready numbers."""

    counters: Counters
    learner: dict[str, Any]
    replay: dict[str, Any]
    """State of the replay without its frames."""
    frames: Tensor
    """Rows of the ring's own tensor, [rows, num_envs, *frame_shape]; they are streamed, never copied as a whole."""
    envs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """State that brings the emulators back; empty unless the run is exact."""


def write(directory: Path, snapshot: Snapshot, score: float | None) -> None:
    """Fill the empty `directory` and flush it to the disk. Raises `OSError`."""
    state: dict[str, Any] = {"counters": snapshot.counters, "frame_rows": len(snapshot.frames)}
    for part in PARTS:
        state[part], tensors = _split(getattr(snapshot, part))
        _write_tensors(directory / f"{part}.safetensors", tensors)
    (directory / STATE).write_text(json.dumps(state))
    _write_frames(directory / FRAMES, snapshot.frames)
    files = {name: _entry(directory / name) for name in FILES}
    (directory / MANIFEST).write_bytes(_seal({"format": FORMAT, "score": score, "files": files}))
    for path in (*directory.iterdir(), directory):
        fsync(path)


def check(directory: Path) -> None:
    """Verify every file. Raises `CorruptError` on a mismatch, and `FormatError` if another version wrote it."""
    manifest = _manifest(directory)
    for name in FILES:
        with _reading(directory / name):
            if manifest["files"].get(name) != _entry(directory / name):
                raise CorruptError(f"{name} does not match its checksum")


def read(directory: Path, frames: Tensor) -> Snapshot:
    """Read a checkpoint that passed `check`; its tensors are on the CPU, and its frames are rows of `frames`.

    `frames` is the ring's own tensor, [rows, num_envs, *frame_shape], whose first rows are overwritten. Raises
    `CorruptError` for a file with unexpected content, and `ConfigError` for a checkpoint of a larger ring.
    """
    state = _json(directory / STATE)
    rows = state.get("frame_rows")
    if type(rows) is not int or not 0 <= rows <= len(frames):
        raise ConfigError(f"{directory} was written for a replay of {shown(rows)} rows; this one has {len(frames)}")
    tensors = {part: load_tensors(directory / f"{part}.safetensors") for part in PARTS}
    with _reading(directory / STATE):
        parts = {part: _join(state[part], tensors[part]) for part in PARTS}
        snapshot = Snapshot(counters=state["counters"], frames=frames[:rows], **parts)
    _read_frames(directory / FRAMES, frames[:rows])
    return snapshot


def score(directory: Path) -> float | None:
    """The score of a checkpoint, from its manifest alone; None when it has none or the manifest is corrupt."""
    try:
        found = _manifest(directory).get("score")
    except (CorruptError, FormatError):
        return None
    return found if isinstance(found, float) and math.isfinite(found) else None


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors of any device as the content of a safetensors file."""
    return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def _write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file tensor by tensor: the library's writers copy all of them, and memory may be short."""
    # Sorted by decreasing alignment, as the library does. Dtype names come from the headers of empty tensors.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header, end = {}, 0
    for name, tensor in ordered:
        empty = safetensors.torch.save({name: tensor.new_zeros(0, device="cpu")})
        dtype = json.loads(empty[8 : 8 + int.from_bytes(empty[:8], "little")])[name]["dtype"]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [end, end + tensor.nbytes]}
        end += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        for _, tensor in ordered:
            opened.write(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def load_tensors(file: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, on the CPU and mapped from the file. Raises `CorruptError`."""
    with _reading(file), file.open("rb") as opened:
        # Opened through its descriptor: the library cannot open paths that are not UTF-8.
        return safetensors.torch.load_file(f"/dev/fd/{opened.fileno()}")


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what the readers of a file raise into a `CorruptError` of one line."""
    try:
        # Reading a pipe would block.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CorruptError(f"{path.name} is not a regular file")
        yield
    except CorruptError:
        raise
    except OSError as error:
        raise CorruptError(f"{path.name}: {error.strerror or error}") from None
    except Exception as error:  # of JSON, zstd, safetensors or torch, about whatever a foreign file holds
        if is_out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise CorruptError(f"{path.name} cannot be read: {reason[:200]}") from None


def _split(state: Mapping[str, Any], prefix: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The state with None in place of each tensor, and the tensors by their paths, such as "online/shared.bias"."""
    numbers: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            numbers[name], tensors[prefix + name] = None, value
        elif isinstance(value, Mapping):
            numbers[name], inner = _split(value, f"{prefix}{name}/")
            tensors |= inner
        else:
            numbers[name] = value
    return numbers, tensors


def _join(numbers: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state that `_split` took apart."""
    for path, tensor in tensors.items():
        *parents, name = path.split("/")
        place = numbers
        for parent in parents:
            place = place[parent]
        place[name] = tensor
    return numbers


def _entry(path: Path) -> dict[str, Any]:
    """What the manifest says about a file."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _seal(manifest: Mapping[str, Any]) -> bytes:
    """The manifest's text, with a checksum of the rest as its last line."""
    checksum = hashlib.sha256(json.dumps(manifest, indent=1).encode()).hexdigest()
    return json.dumps({**manifest, "sha256": checksum}, indent=1).encode()


def _manifest(directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST
    content = _json(path)
    with _reading(path):
        # Compared as text, so that a flipped bit of white space counts, too.
        if _seal({name: value for name, value in content.items() if name != "sha256"}) != path.read_bytes():
            raise CorruptError(f"{MANIFEST} does not match its own checksum")
    number = content.get("format")
    if number != FORMAT:
        age = "an older" if isinstance(number, int) and number < FORMAT else "another"
        raise FormatError(
            f"{directory} was written by {age} version of atari_dqn (format {shown(number)}); this version reads format"
            f" {FORMAT}; use the version that wrote it, or start a new run"
        )
    return content


def _json(path: Path) -> dict[str, Any]:
    with _reading(path):
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise CorruptError(f"{path.name} is not a JSON object")
        return content


def _chunks(frames: Tensor) -> Iterator[Tensor]:
    """Views of whole rows, each of about `CHUNK_BYTES`."""
    rows = max(1, CHUNK_BYTES * len(frames) // max(1, frames.nbytes))
    return (frames[first : first + rows] for first in range(0, len(frames), rows))


def _bytes_of(chunk: Tensor) -> memoryview:
    return chunk.cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _write_frames(path: Path, frames: Tensor) -> None:
    # Level 1 shrinks Atari frames 50 to 230 times at gigabytes a second; higher levels cost minutes for little.
    with path.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file, closefd=False) as writer:
        for chunk in _chunks(frames):
            writer.write(_bytes_of(chunk))


def _read_frames(path: Path, frames: Tensor) -> None:
    reader_of = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES).stream_reader
    with _reading(path), path.open("rb") as file, reader_of(file, read_across_frames=True) as reader:
        for chunk in _chunks(frames):
            buffer = torch.empty(chunk.shape, dtype=chunk.dtype)
            view, filled = _bytes_of(buffer), 0
            while filled < len(view):
                count = reader.readinto(view[filled:])
                if not count:
                    raise CorruptError(f"{path.name} ends early, or was written for a smaller replay")
                filled += count
            chunk.copy_(buffer)
        if reader.read(1):
            raise CorruptError(f"{path.name} has more frames than expected, or was written for a larger replay")
