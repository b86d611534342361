"""Lock of a run directory: one training at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from atari_dqn.config.setting import ConfigError
from atari_dqn.system.files import exclusive, remove_empty

LOCK = ".lock"
"""Name of the lock's file in a run directory; it holds the number of the process."""
LOOK_SECONDS = 0.5
"""Seconds that a starting training waits for the lock: `is_training` holds it for microseconds."""


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Create `run_dir` and hold its lock; at the end remove what nothing came of.

    Raises `ConfigError` when another process is training in it.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.callback(remove_empty, *(path for path in (run_dir, *run_dir.parents) if not path.exists()))
            run_dir.mkdir(parents=True, exist_ok=True)
            stack.enter_context(exclusive(run_dir / LOCK, LOOK_SECONDS))
        except BlockingIOError:
            raise _held(run_dir) from None
        except OSError as error:
            raise ConfigError(f"cannot lock --run-dir {run_dir}: {error.strerror}") from None
        with contextlib.suppress(OSError):  # the number only serves messages, and the disk may be full
            (run_dir / LOCK).write_text(str(os.getpid()))
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if os.listdir(run_dir) == [LOCK]:
                    # Safe while held, and only then: who waits for the lock of a deleted file tries again with a new
                    # one (see `exclusive`), and nothing is done here any more.
                    (run_dir / LOCK).unlink()


def check_not_training(run_dir: Path) -> None:
    """Raise `ConfigError`, naming the process, while one is training in `run_dir`."""
    if is_training(run_dir):
        raise _held(run_dir)


def is_training(run_dir: Path) -> bool:
    """Whether a process holds the lock of `run_dir`. Never raises, and creates nothing."""
    try:
        with (run_dir / LOCK).open() as file:
            # Shared, so that several may look at once without taking each other for a training.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except OSError as error:
        return isinstance(error, BlockingIOError)


def _held(run_dir: Path) -> ConfigError:
    holder = ""
    with contextlib.suppress(OSError):  # it may have ended since
        holder = (run_dir / LOCK).read_text(errors="replace")
    return ConfigError(f"process {holder or '?'} is training in {run_dir}; choose another --run-dir")
