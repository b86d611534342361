"""File operations that either succeed as a whole or change nothing, and locks."""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def append(file: Path, record: bytes) -> None:
    """Append `record`. Raises `OSError`; then nothing is appended, as a partial record would spoil the next one."""
    with file.open("ab", buffering=0) as opened:
        end = opened.tell()
        try:
            while record:
                record = record[opened.write(record) :]
        except OSError:
            opened.truncate(end)
            raise


def check_room_for(file: Path) -> None:
    """Make the directory of `file`. Raises `OSError` unless `file` can be written there; an absent one stays absent."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.exists():
        file.open("ab").close()
    else:
        tempfile.TemporaryFile(dir=file.parent).close()


def replace(file: Path, content: bytes) -> None:
    """Replace the content of `file`, which has either the old or the new one at any moment. Raises `OSError`."""
    partial = file.with_suffix(".partial")
    try:
        with partial.open("wb") as opened:
            opened.write(content)
            opened.flush()
            os.fsync(opened.fileno())
        partial.replace(file)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def remove_empty(*directories: Path) -> None:
    """Remove those that exist and are empty."""
    for directory in directories:
        with contextlib.suppress(OSError):
            directory.rmdir()


def fsync(path: Path) -> None:
    """Flush a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(file: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock on `file`, which is created if absent; the kernel releases it with the process, however that ends.

    Raises `BlockingIOError` if another process holds it for longer than `seconds`, and `OSError` if it is not a file.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(file, timeout=seconds, poll_interval=0.01, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, "another process holds the lock", str(file)) from None
    try:
        yield
    finally:
        lock.release()
