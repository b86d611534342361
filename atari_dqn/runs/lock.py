"""The lock of a run directory: one training at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from atari_dqn.config.setting import ConfigError

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
        file = (run_dir / LOCK).open("ab+", buffering=0)
    except OSError as error:
        raise ConfigError(f"--run-dir {run_dir}: {error.strerror}") from None
    with file:
        try:
            _take(file, run_dir)
        except OSError as error:
            raise ConfigError(f"--run-dir {run_dir} cannot be locked: {error.strerror}") from None
        yield


def _take(file: IO[bytes], run_dir: Path) -> None:
    give_up = time.monotonic() + LOOK_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise _held(run_dir) from None
            time.sleep(LOOK_SECONDS / 50)
    with contextlib.suppress(OSError):  # the name of the process is a courtesy, and the disk may be full
        file.truncate(0)
        file.write(str(os.getpid()).encode())


def _held(run_dir: Path) -> ConfigError:
    holder = (run_dir / LOCK).read_text(errors="replace") or "?"
    return ConfigError(f"process {holder} is training in {run_dir}; name another --run-dir")


def check_not_training(run_dir: Path) -> None:
    """Raise `ConfigError`, naming the process, while one trains in `run_dir`."""
    if is_training(run_dir):
        raise _held(run_dir)


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
