"""The checkpoints of a run: snapshots flow in, and the newest whole one flows out, or a policy made of one.

A checkpoint is written under a temporary name, flushed to disk, and renamed last: whatever moment a save is killed at,
the newest complete one stays. The files `latest` and `best` name a checkpoint to people; nothing here believes them.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

import torch

from atari_dqn.config.setting import ConfigError
from atari_dqn.runs import checkpoint_files as files
from atari_dqn.runs.archive import Unsound, load_tensors
from atari_dqn.runs.checkpoint_files import Snapshot, fsync

NAME = re.compile(r"(?P<step>0|[1-9][0-9]*)|\.(?P<former>0|[1-9][0-9]*)\.former")
"""A checkpoint's directory; the second while another of the same env step takes its place."""


class CheckpointStore:
    """The checkpoints of one run directory."""

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        self.directory = run_dir / "checkpoints"
        self.keep = keep

    def steps(self) -> list[int]:
        """Env steps of the stored checkpoints, oldest first, whole or not."""
        return sorted(self._stored())

    def save(self, env_step: int, snapshot: Snapshot, score: float | None) -> Path:
        """Write the checkpoint of `env_step`, then drop old ones: the newest `keep` stay, and the best `score`.

        Raises `OSError`; what was half written is gone then, and what was stored before is still there.
        """
        if not self.directory.is_dir():
            self.directory.mkdir(parents=True, exist_ok=True)
            fsync(self.directory.parent)
        self._clean_up()
        temporary, final = self.directory / f".{env_step}.partial", self.directory / str(env_step)
        temporary.mkdir()
        try:
            files.write(temporary, snapshot, score)
            if final.exists():
                final.rename(self.directory / f".{env_step}.former")
            temporary.rename(final)
            fsync(self.directory)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        # The checkpoint is whole. What follows is for room and for people, and no part of it may keep another from it.
        best = self._best()
        for step in self.steps()[: -self.keep]:
            if step not in (best, env_step):
                with contextlib.suppress(OSError):
                    shutil.rmtree(self.directory / str(step))
        with contextlib.suppress(OSError):
            self._clean_up()
        for pointer, named in (("latest", env_step), ("best", best)):
            with contextlib.suppress(OSError):
                if named is not None:
                    self._point(pointer, named)
        with contextlib.suppress(OSError):
            fsync(self.directory)
        return final

    def newest_whole(self) -> tuple[Path | None, dict[Path, str]]:
        """The newest whole checkpoint, and of each newer one why it is none. Raises `OtherFormat`."""
        faults: dict[Path, str] = {}
        for _, path in sorted(self._stored().items(), reverse=True):
            try:
                files.check(path)
                return path, faults
            except Unsound as fault:
                faults[path] = str(fault)
        return None, faults

    def load_newest(self, device: torch.device, frames: torch.Tensor) -> tuple[Snapshot | None, list[str]]:
        """The newest whole checkpoint (None: there is none) and a line about each newer one that was skipped.

        The frames are read straight into the first rows of `frames`, the ring's own tensor. Skipped checkpoints are
        renamed, so that they neither stand before newer ones nor crowd them out. Raises `ConfigError` when there are
        checkpoints and none is whole: to start over silently would bury what might still be rescued; when one does not
        fit; and when it cannot be read.
        """
        try:
            self._clean_up()
            newest, faults = self.newest_whole()
            if newest is not None:
                snapshot = files.read(newest, device, frames)
                return snapshot, [_set_aside(path, reason) for path, reason in faults.items()]
        except Unsound as fault:
            raise ConfigError(f"checkpoint {newest} has its checksums, and yet is none: {fault}") from None
        except OSError as error:
            raise ConfigError(f"{error.filename or self.directory}: {error.strerror or error}") from None
        if faults:
            first, reason = next(iter(faults.items()))
            raise ConfigError(
                f"no whole checkpoint is left in {self.directory} (the newest, {first.name}: {reason});"
                " name another --run-dir to start over"
            )
        return None, []

    def find(self, which: str) -> Path:
        """The directory of checkpoint `which`: "latest", "best" or an env step. Raises `ConfigError`."""
        try:
            stored = self._stored()
        except OSError as error:
            raise ConfigError(f"{self.directory}: {error.strerror}") from None
        if not stored:
            raise ConfigError(f"{self.directory} holds no checkpoint; train writes one every --checkpoint-interval")
        named = {"latest": max(stored), "best": self._best()}
        step = int(which) if which.isascii() and which.isdigit() else named.get(which)
        if step not in stored:
            known = ", ".join(map(str, sorted(stored)))
            raise ConfigError(f"no checkpoint {which!r} in {self.directory}; it must be latest, best or one of {known}")
        try:
            files.check(stored[step])
        except Unsound as fault:
            raise ConfigError(f"checkpoint {stored[step]} is damaged: {fault}") from None
        return stored[step]

    def _stored(self) -> dict[int, Path]:
        """By env step. One that was just being replaced counts where what replaces it is not there."""
        try:
            found = [(match, path) for path in self.directory.iterdir() if (match := NAME.fullmatch(path.name))]
        except FileNotFoundError:
            if os.path.lexists(self.directory):
                raise  # a link to a disk that is not there: what it holds must not be taken for nothing
            return {}
        formers = {int(match["former"]): path for match, path in found if match["former"]}
        return formers | {int(match["step"]): path for match, path in found if match["step"] and path.is_dir()}

    def _best(self) -> int | None:
        """The env step with the highest score, the newest of several."""
        scores = {step: score for step, path in self._stored().items() if (score := files.score(path)) is not None}
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def _clean_up(self) -> None:
        """Do away with what a killed save left. Only for who holds the run: another's save may be under way."""
        for step, path in self._stored().items():
            if path.name != str(step):
                path.rename(self.directory / str(step))
        for litter in (*self.directory.glob(".*.partial"), *self.directory.glob(".*.former")):
            shutil.rmtree(litter) if litter.is_dir() and not litter.is_symlink() else litter.unlink()

    def _point(self, pointer: str, env_step: int) -> None:
        temporary = self.directory / f".{pointer}.partial"
        temporary.write_text(str(env_step))
        fsync(temporary)
        temporary.rename(self.directory / pointer)


def _set_aside(damaged: Path, reason: str) -> str:
    """Rename a checkpoint that is none. Returns a line about it."""
    names = (f"{damaged.name}.damaged{suffix}" for suffix in ("", *(f".{number}" for number in range(2, 1000))))
    free = next(name for name in names if not damaged.with_name(name).exists())
    damaged.rename(damaged.with_name(free))
    return f"checkpoint {damaged} skipped and renamed to {free}: {reason}"


def load_weights(file: Path, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
    """The online network's weights from a checkpoint directory or its `learner.pt`. Raises `ConfigError`.

    The file may be anybody's: no more is read of it than tensors, nor more bytes than a network could have.
    """
    if file.is_dir():
        try:
            files.check(file)
        except Unsound as fault:
            raise ConfigError(f"{file} is no whole checkpoint: {fault}") from None
        file = file / "learner.pt"
    try:
        weights = load_tensors(file, device, files.MOST_TENSORS).get("online")
    except Unsound as fault:
        raise ConfigError(f"no weights at {file}: {fault}; a checkpoint's learner.pt has them") from None
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(weight, torch.Tensor) for name, weight in weights.items()
    ):
        raise ConfigError(f"no weights at {file}; a checkpoint's learner.pt has them")
    return weights
