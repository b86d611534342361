"""Checkpoints: everything a run needs to go on, written so that a torn one is never mistaken for a whole one.

Flows in: the run's state, as JSON-ready counters, dicts of tensors, and the ring's frames. Flows out: a directory
`checkpoints/<env_step>/` with a manifest of SHA-256 sums, and back again the newest one whose sums hold.
A checkpoint is written under a temporary name, flushed to disk, and renamed last; nothing in it can run code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard

from atari_dqn.config import ConfigError, TrainConfig, load_config
from atari_dqn.envs.make import PROTOCOLS, EnvSpec, env_spec
from atari_dqn.network import make_network, take_weights

CHUNK_BYTES = 1 << 24
FILES = {"counters.json", "learner.pt", "replay.pt", "frames.zst", "envs.pt"}


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds. `frames` are rows of the ring's own tensor: they are streamed, never copied whole."""

    counters: dict[str, Any]
    """JSON-ready: env steps, running episodes, generator states"""
    learner: dict[str, Any]
    replay: dict[str, Any]
    frames: torch.Tensor
    envs: dict[str, Any] = dataclasses.field(default_factory=dict)
    """of an exact run: seeds and actions that bring the envs back"""


class CheckpointStore:
    """The checkpoints of one run directory."""

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        self.directory = run_dir / "checkpoints"
        self.keep = keep

    def steps(self) -> list[int]:
        """Env steps of the stored checkpoints, oldest first, whole or not."""
        if not self.directory.is_dir():
            return []
        return sorted(int(path.name) for path in self.directory.iterdir() if path.is_dir() and _is_step(path.name))

    def save(self, env_step: int, snapshot: Snapshot, score: float | None) -> Path:
        """Write the checkpoint of `env_step`, then drop old ones: the newest `keep` stay, and the best `score`."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for abandoned in self.directory.glob(".*.partial"):
            shutil.rmtree(abandoned, ignore_errors=True)
        temporary = self.directory / f".{env_step}.partial"
        temporary.mkdir()
        counters = {**snapshot.counters, "score": score, "frame_rows": len(snapshot.frames)}
        (temporary / "counters.json").write_text(json.dumps(counters))
        torch.save(snapshot.learner, temporary / "learner.pt")
        torch.save(snapshot.replay, temporary / "replay.pt")
        torch.save(snapshot.envs, temporary / "envs.pt")
        _write_frames(temporary / "frames.zst", snapshot.frames)
        manifest = {path.name: _sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))
        for path in temporary.iterdir():
            _fsync(path)
        _fsync(temporary)
        final = self.directory / str(env_step)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        self._point("latest", final.name)
        best = self._named("best")
        if score is not None and (best is None or score >= self._score(best)):
            self._point("best", final.name)
        _fsync(self.directory)
        self._prune()
        return final

    def load_newest(self, device: torch.device, frames: torch.Tensor) -> tuple[Snapshot | None, list[str]]:
        """The newest whole checkpoint (None: there is none) and a line about each newer one that was skipped.

        The frames are read straight into the first rows of `frames`, the ring's own tensor. Skipped checkpoints are
        renamed, so that they neither stand before newer ones nor crowd them out. Raises `ConfigError` when there are
        checkpoints and none is whole: to start over silently would bury what might still be rescued.
        """
        faults: dict[Path, str] = {}
        for step in reversed(self.steps()):
            path = self.directory / str(step)
            fault = _fault(path)
            if fault:
                faults[path] = fault
                continue
            skipped = []
            for damaged, reason in faults.items():
                damaged.rename(damaged.with_name(f"{damaged.name}.damaged"))
                skipped.append(f"checkpoint {damaged} skipped and renamed to {damaged.name}.damaged: {reason}")
            counters = json.loads((path / "counters.json").read_text())
            used = frames[: counters["frame_rows"]]
            _read_frames(path / "frames.zst", used)
            learner = torch.load(path / "learner.pt", map_location=device, weights_only=True)
            replay = torch.load(path / "replay.pt", map_location="cpu", weights_only=True)
            envs = torch.load(path / "envs.pt", map_location="cpu", weights_only=True)
            return Snapshot(counters, learner, replay, used, envs), skipped
        if faults:
            newest = next(iter(faults))
            raise ConfigError(
                f"no whole checkpoint is left in {self.directory} (the newest, {newest.name}: {faults[newest]});"
                " name another --run-dir to start over"
            )
        return None, []

    def find(self, which: str) -> Path:
        """The directory of checkpoint `which`: "latest", "best" or an env step. Raises `ConfigError`."""
        stored = self.steps()
        if not stored:
            raise ConfigError(f"{self.directory} holds no checkpoint; train writes one every --checkpoint-interval")
        name = which if _is_step(which) else self._named(which)
        if name is None or int(name) not in stored:
            known = ", ".join(map(str, stored))
            raise ConfigError(f"no checkpoint {which!r} in {self.directory}; it must be latest, best or one of {known}")
        path = self.directory / str(int(name))
        fault = _fault(path)
        if fault:
            raise ConfigError(f"checkpoint {path} is damaged: {fault}")
        return path

    def _named(self, pointer: str) -> str | None:
        try:
            name = (self.directory / pointer).read_text().strip()
        except OSError:
            return None
        return name if _is_step(name) and (self.directory / name).is_dir() else None

    def _point(self, pointer: str, name: str) -> None:
        temporary = self.directory / f".{pointer}.partial"
        temporary.write_text(name)
        _fsync(temporary)
        temporary.rename(self.directory / pointer)

    def _score(self, name: str) -> float:
        try:
            score = json.loads((self.directory / name / "counters.json").read_text())["score"]
        except (OSError, ValueError, KeyError):
            return -np.inf
        return -np.inf if score is None else float(score)

    def _prune(self) -> None:
        wanted = {self._named("best"), self._named("latest")}
        for step in self.steps()[: -self.keep]:
            if str(step) not in wanted:
                shutil.rmtree(self.directory / str(step))


@dataclasses.dataclass(frozen=True)
class Policy:
    """A trained network with what is needed to act with it."""

    config: TrainConfig
    spec: EnvSpec
    network: torch.nn.Module
    env_step: int


def load_policy(run_dir: Path, which: str = "latest", device: str | torch.device = "cpu") -> Policy:
    """The online network of a run's checkpoint. Raises `ConfigError` when the run or the checkpoint is not there."""
    if not (run_dir / "config.json").is_file():
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.json")
    config = load_config(run_dir / "config.json")
    path = CheckpointStore(run_dir).find(which)
    spec = env_spec(config.env.env_id, PROTOCOLS[config.env.protocol], config.env.frame_stack)
    network = make_network(spec, config.network).to(device)
    take_weights(network, load_weights(path / "learner.pt", device), path)
    network.eval()
    return Policy(config=config, spec=spec, network=network, env_step=int(path.name))


def load_weights(file: Path, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """The online network's weights from a checkpoint directory or its `learner.pt`. Raises `ConfigError`."""
    if file.is_dir():
        fault = _fault(file)
        if fault:
            raise ConfigError(f"{file} is no whole checkpoint: {fault}")
        file = file / "learner.pt"
    try:
        weights = torch.load(file, map_location=device, weights_only=True)["online"]
    except OSError as error:
        raise ConfigError(f"no weights at {file}: {error.strerror}") from None
    except Exception as error:  # whatever a foreign file makes the unpickler say
        raise ConfigError(f"{file} holds no weights; a checkpoint's learner.pt does ({type(error).__name__})") from None
    if not isinstance(weights, dict) or not all(isinstance(weight, torch.Tensor) for weight in weights.values()):
        raise ConfigError(f"{file} holds no weights; a checkpoint's learner.pt does")
    return weights


def _is_step(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _fault(path: Path) -> str:
    """Why the checkpoint at `path` cannot be trusted; empty when it can."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        if set(manifest) != FILES:
            return "manifest.json does not name the four files of a checkpoint"
        for name, expected in manifest.items():
            if _sha256(path / name) != expected:
                return f"{name} does not match its checksum"
    except OSError as error:
        return f"{Path(error.filename or path).name}: {error.strerror}"
    except (ValueError, AttributeError, TypeError):
        return "manifest.json is not a manifest"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _chunks(frames: torch.Tensor) -> Iterator[torch.Tensor]:
    """Views of whole rows, each of about `CHUNK_BYTES`."""
    rows = max(1, CHUNK_BYTES * len(frames) // frames.nbytes)
    yield from frames.split(rows)


def _write_frames(path: Path, frames: torch.Tensor) -> None:
    # Level 1 shrinks Atari frames 50 to 230 times at gigabytes a second; higher levels cost minutes for little.
    with path.open("wb") as file, zstandard.ZstdCompressor(level=1).stream_writer(file) as writer:
        for chunk in _chunks(frames):
            writer.write(chunk.cpu().numpy().data.cast("B"))


def _read_frames(path: Path, frames: torch.Tensor) -> None:
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
        for chunk in _chunks(frames):
            buffer = np.empty(chunk.shape, dtype=chunk.cpu().numpy().dtype)
            view = buffer.data.cast("B")
            filled = 0
            while filled < len(view):
                count = reader.readinto(view[filled:])
                if not count:
                    raise ConfigError(f"{path} ends early: it was written for a smaller replay")
                filled += count
            chunk.copy_(torch.from_numpy(buffer))
