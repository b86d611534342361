"""Checkpoints of a run: saving them, finding the newest valid one, removing old ones.

A checkpoint is written under a temporary name, flushed to the disk and renamed last: whenever a save is killed, the
newest complete checkpoint stays. The files `latest` and `best` name checkpoints for people; the code ignores them.
"""

import contextlib
import shutil
from pathlib import Path

import torch

from atari_dqn.config.setting import ConfigError
from atari_dqn.runs import checkpoint_files as files
from atari_dqn.runs.checkpoint_files import CorruptError, Snapshot, load_tensors
from atari_dqn.runs.directory import LEARNER, check_checkpoint, checkpoints_in, named
from atari_dqn.system.files import fsync, replace

ONLINE = "online/"
"""Prefix of the online network's weights in a learner's file."""
EXPECTED = f"give a run, the directory of one of its checkpoints, or its {LEARNER}"


class CheckpointStore:
    """The checkpoints of one run directory."""

    def __init__(self, run_dir: Path, keep: int = 2) -> None:
        self.run_dir, self.directory = run_dir, run_dir / "checkpoints"
        self.keep = keep

    def steps(self) -> list[int]:
        """Env steps of the stored checkpoints, oldest first, valid or not."""
        return sorted(checkpoints_in(self.run_dir))

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
        for pointer, at in (("latest", env_step), ("best", best)):
            with contextlib.suppress(OSError):
                replace(self.directory / pointer, str(at).encode())
        return final

    def newest_valid(self) -> tuple[Path | None, dict[Path, str]]:
        """The newest valid checkpoint, and why each newer one was skipped. Raises `FormatError`."""
        skipped: dict[Path, str] = {}
        for _, path in sorted(checkpoints_in(self.run_dir).items(), reverse=True):
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
        check_checkpoint(self.run_dir, which)
        stored = checkpoints_in(self.run_dir)
        step = self._best() if which == "best" else max(stored) if which == "latest" else int(which)
        if step is None:
            raise ConfigError(f"no checkpoint in {self.directory} has a score; choose latest or an env step")
        try:
            files.check(stored[step])
        except CorruptError as error:
            raise ConfigError(f"checkpoint {stored[step]} is corrupt: {error}") from None
        return stored[step]

    def _best(self) -> int | None:
        """The env step with the highest score, the newest of several."""
        stored = checkpoints_in(self.run_dir)
        scores = {step: score for step, path in stored.items() if (score := files.score(path)) is not None}
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def _remove_leftovers(self) -> None:
        """Remove leftovers of interrupted saves. The caller must hold the run's lock."""
        for step, path in checkpoints_in(self.run_dir).items():
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
    """Weights that a person names: of a run's checkpoint, see `named`, or as `read_weights`."""
    whole = source.name != LEARNER or not source.is_file()
    if whole and (found := named(source, takes=None)).kind == "run":
        source = CheckpointStore(found.path).find(found.checkpoint) / LEARNER
    return read_weights(source)


def read_weights(source: Path) -> dict[str, torch.Tensor]:
    """Weights of the online network, on the CPU. Raises `ConfigError` when they are absent or not valid.

    `source` is a checkpoint's directory, which is checked, or its `learner.safetensors`, which is not.
    """
    try:
        if source.is_dir():
            files.check(source)
            source = source / LEARNER
        tensors = load_tensors(source)
    except CorruptError as error:
        raise ConfigError(f"no weights in {source}: {error}; {EXPECTED}") from None
    weights = {name.removeprefix(ONLINE): tensor for name, tensor in tensors.items() if name.startswith(ONLINE)}
    if not weights:
        raise ConfigError(f"no weights in {source}; {EXPECTED}")
    return weights
