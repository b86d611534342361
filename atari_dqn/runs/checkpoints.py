"""Checkpoints of a run: saving them, finding the newest valid one, removing old ones.

A checkpoint is written under a temporary name, flushed to the disk and renamed last: whenever a save is killed, the
newest complete checkpoint stays. The files `latest` and `best` name checkpoints for people; the code ignores them.
"""

import contextlib
import os
import re
import shutil
from pathlib import Path

import torch

from atari_dqn.config.setting import ConfigError
from atari_dqn.runs import checkpoint_files as files
from atari_dqn.runs.checkpoint_files import LEARNER, CorruptError, Snapshot, load_tensors
from atari_dqn.system.files import fsync, replace

NAME = re.compile(r"(?P<step>0|[1-9][0-9]*)|\.(?P<former>0|[1-9][0-9]*)\.former")
"""Names of a checkpoint's directory; the second one while another checkpoint of the same env step replaces it."""
ONLINE = "online/"
"""Prefix of the online network's weights in a learner's file."""
EXPECTED = f"give a run, the directory of one of its checkpoints, or its {LEARNER}"


class CheckpointStore:
    """The checkpoints of one run directory."""

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        self.directory = run_dir / "checkpoints"
        self.keep = keep

    def steps(self) -> list[int]:
        """Env steps of the stored checkpoints, oldest first, valid or not."""
        return sorted(self._stored())

    def save(self, env_step: int, snapshot: Snapshot, score: float | None) -> Path:
        """Write the checkpoint of `env_step`, then remove old ones: the newest `keep` and the best `score` stay.

        Raises `OSError`; then earlier ones are unchanged.
        """
        if not self.directory.is_dir():
            self.directory.mkdir(parents=True, exist_ok=True)
            fsync(self.directory.parent)
        self._remove_leftovers()
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
        # The checkpoint is complete. The rest frees space and helps people; a failure there must not fail the save.
        best = self._best()
        for step in self.steps()[: -self.keep]:
            if step not in (best, env_step):
                shutil.rmtree(self.directory / str(step), ignore_errors=True)
        with contextlib.suppress(OSError):
            self._remove_leftovers()
        for pointer, named in (("latest", env_step), ("best", best)):
            with contextlib.suppress(OSError):
                replace(self.directory / pointer, str(named).encode())
        return final

    def newest_valid(self) -> tuple[Path | None, dict[Path, str]]:
        """The newest valid checkpoint, and why each newer one was skipped. Raises `FormatError`."""
        skipped: dict[Path, str] = {}
        for _, path in sorted(self._stored().items(), reverse=True):
            try:
                files.check(path)
                return path, skipped
            except CorruptError as error:
                skipped[path] = str(error)
        return None, skipped

    def load_newest(self, frames: torch.Tensor) -> tuple[Snapshot | None, list[str]]:
        """Load the newest valid checkpoint, if there is any, and rename the corrupt ones that were skipped.

        Renamed ones neither hide newer checkpoints nor count among those that are kept. `frames` is as in
        `checkpoint_files.read`. Also returns a line about each that was skipped. Raises `ConfigError` if all are
        corrupt (starting over would bury what can perhaps be repaired), or the newest valid one cannot be used.
        """
        try:
            self._remove_leftovers()
            newest, skipped = self.newest_valid()
            if newest is not None:
                snapshot = files.read(newest, frames)
                return snapshot, [_rename_corrupt(path, reason) for path, reason in skipped.items()]
        except CorruptError as error:
            raise ConfigError(f"checkpoint {newest} passes its checksums but cannot be read: {error}") from None
        except OSError as error:
            raise ConfigError(f"{error.filename or self.directory}: {error.strerror or error}") from None
        if skipped:
            first, reason = next(iter(skipped.items()))
            raise ConfigError(
                f"no valid checkpoint in {self.directory} (the newest, {first.name}: {reason});"
                " choose another --run-dir to start over"
            )
        return None, []

    def find(self, which: str) -> Path:
        """The directory of checkpoint `which`: "latest", "best" or an env step. Raises `ConfigError`."""
        try:
            stored = self._stored()
        except OSError as error:
            raise ConfigError(f"{self.directory}: {error.strerror}") from None
        if not stored:
            raise ConfigError(f"no checkpoint in {self.directory}; train writes one every --checkpoint-interval")
        named = {"latest": max(stored), "best": self._best()}
        step = int(which) if which.isascii() and which.isdigit() else named.get(which)
        if step not in stored:
            known = ", ".join(map(str, sorted(stored)))
            raise ConfigError(f"no checkpoint {which!r} in {self.directory}; choose latest, best or one of {known}")
        try:
            files.check(stored[step])
        except CorruptError as error:
            raise ConfigError(f"checkpoint {stored[step]} is corrupt: {error}") from None
        return stored[step]

    def _stored(self) -> dict[int, Path]:
        """Directories by env step. A checkpoint that was being replaced counts only if its replacement is missing."""
        try:
            found = [(match, path) for path in self.directory.iterdir() if (match := NAME.fullmatch(path.name))]
        except FileNotFoundError:
            if os.path.lexists(self.directory):
                raise  # a link to a disk that is not mounted: there may well be checkpoints
            return {}
        formers = {int(match["former"]): path for match, path in found if match["former"]}
        return formers | {int(match["step"]): path for match, path in found if match["step"] and path.is_dir()}

    def _best(self) -> int | None:
        """The env step with the highest score, the newest of several."""
        scores = {step: score for step, path in self._stored().items() if (score := files.score(path)) is not None}
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def _remove_leftovers(self) -> None:
        """Remove leftovers of interrupted saves. The caller must hold the run's lock."""
        for step, path in self._stored().items():
            if path.name != str(step):
                path.rename(self.directory / str(step))
        for leftover in (*self.directory.glob(".*.partial"), *self.directory.glob(".*.former")):
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()


def _rename_corrupt(corrupt: Path, reason: str) -> str:
    """Rename a corrupt checkpoint, and return a line about it."""
    names = (f"{corrupt.name}.corrupt{suffix}" for suffix in ("", *(f".{number}" for number in range(2, 1000))))
    free = next(name for name in names if not corrupt.with_name(name).exists())
    corrupt.rename(corrupt.with_name(free))
    return f"checkpoint {corrupt} skipped and renamed to {free}: {reason}"


def load_weights(source: Path) -> dict[str, torch.Tensor]:
    """Weights of the online network, on the CPU. Raises `ConfigError` when they are absent or not valid.

    `source` is a checkpoint's directory, which is checked; its `learner.safetensors`, from any source, so it is not
    verified; a run or its `checkpoints`, for the newest one; or `checkpoints/latest` or `checkpoints/best`.
    """
    source = _checkpoint_of(source)
    try:
        if source.is_dir():
            files.check(source)
            source = source / LEARNER
        tensors = load_tensors(source)
    except CorruptError as error:
        old = f"it is not a {LEARNER}, but of an older version or of another program"
        raise ConfigError(f"no weights in {source}: {old if source.suffix == '.pt' else error}; {EXPECTED}") from None
    weights = {name.removeprefix(ONLINE): tensor for name, tensor in tensors.items() if name.startswith(ONLINE)}
    if not weights:
        raise ConfigError(f"no weights in {source}; {EXPECTED}")
    return weights


def _checkpoint_of(source: Path) -> Path:
    """`source`, unless it stands for a checkpoint of a run: see `load_weights`."""
    place = source.absolute()
    if (place / "checkpoints").is_dir():
        place = place / "checkpoints"
    if place.name == "checkpoints":
        place = place / "latest"
    if place.parent.name == "checkpoints" and place.name in ("latest", "best"):
        return CheckpointStore(place.parents[1]).find(place.name)
    return source
