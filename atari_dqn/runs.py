"""A run directory as far as torch is not needed: whether a run may live there, who holds it, its settings and rows."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from atari_dqn.config import ConfigError, TrainConfig, flag, load_config, settings
from atari_dqn.system import describe_system


def new_run_dir(config: TrainConfig) -> Path:
    """`runs/<env>-<seed>-<time>`."""
    name = config.env.env_id.split(":")[-1].removeprefix("ALE/").replace("/", "-")
    return Path("runs") / f"{name}-{config.run.seed}-{time.strftime('%Y%m%d-%H%M%S')}"


def check_run_dir(config: TrainConfig, run_dir: Path) -> None:
    """Raise `ConfigError` unless a run with `config` can begin or go on in `run_dir`; creates nothing.

    A run may go on with other rates and intervals, but not as another run.
    """
    try:
        place = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            what = "not writable" if place.is_dir() else "a file"
            raise ConfigError(f"--run-dir {run_dir}: {place} is {what}; name a directory that can be written")
        begun = (run_dir / "config.json").exists()
        if not begun and run_dir.exists() and {path.name for path in run_dir.iterdir()} - {LOCK}:
            raise ConfigError(f"--run-dir {run_dir} holds something else than a run; name an empty or a new one")
    except OSError as error:
        raise ConfigError(f"--run-dir {run_dir}: {error.strerror}") from None
    if not begun:
        return
    stored, asked = read_config(run_dir).to_dict(), config.to_dict()
    for name, setting in settings(TrainConfig).items():
        if setting.structural and stored[name] != asked[name]:
            raise ConfigError(
                f"{run_dir} was begun with {flag(name)} {stored[name]} and cannot go on with {asked[name]};"
                " give the former value, or another --run-dir"
            )


LOCK = ".lock"
LOOK_SECONDS = 0.5
"""Within which a lock that is only looked at, as `is_training` does for microseconds, is free again."""


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Create `run_dir` and hold it for this process. Raises `ConfigError` when another one trains in it.

    The kernel drops the lock with the process, however that ends: none is ever stale.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = (run_dir / LOCK).open("a+")
    except OSError as error:
        raise ConfigError(f"--run-dir {run_dir}: {error.strerror}") from None
    with file:
        give_up = time.monotonic() + LOOK_SECONDS
        while not _taken(file):
            if time.monotonic() > give_up:
                file.seek(0)
                raise ConfigError(f"process {file.read() or '?'} is training in {run_dir}; name another --run-dir")
            time.sleep(LOOK_SECONDS / 50)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _taken(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def is_training(run_dir: Path) -> bool:
    """True while a process holds `run_dir`."""
    try:
        with (run_dir / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def describe_run(config: TrainConfig, run_dir: Path, **facts: Any) -> None:
    """Write what was asked, how, and on what: config.json, command.txt, and system.json with further `facts`."""
    _write(run_dir / "config.json", config.to_dict())
    _write(run_dir / "system.json", describe_system() | facts)
    with (run_dir / "command.txt").open("a") as file:
        file.write(shlex.join([Path(sys.executable).name, *sys.orig_argv[1:]]) + "\n")


def _write(file: Path, content: dict[str, Any]) -> None:
    # Under another name first: a kill in mid-write would leave a run that cannot be continued.
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(file)


def read_config(run_dir: Path) -> TrainConfig:
    """The settings of a run. Raises `ConfigError` when `run_dir` is none."""
    if not (run_dir / "config.json").is_file():
        raise ConfigError(f"{run_dir} is not a run directory: it has no config.json")
    return load_config(run_dir / "config.json")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` or `evaluations.jsonl`; none when the file is absent. A torn last row is left out."""
    if not file.is_file():
        return []
    try:
        lines = file.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is not text") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number < len(lines):
                raise ConfigError(f"{file}, line {number}, is not JSON") from None
            break
        if not isinstance(row, dict) or "env_step" not in row:
            raise ConfigError(f"{file}, line {number}, is no row: it has no env_step")
        rows.append(row)
    return rows
