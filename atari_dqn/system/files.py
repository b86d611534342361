"""Writes to files that are complete or absent."""

from __future__ import annotations

import os
from pathlib import Path


def append(file: Path, record: bytes) -> None:
    """Raises `OSError`; then nothing is appended, not even the start of the record, which would spoil the next."""
    with file.open("ab", buffering=0) as opened:
        end = opened.tell()
        try:
            while record:
                record = record[opened.write(record) :]
        except OSError:
            opened.truncate(end)
            raise


def rewrite(file: Path, lines: list[bytes], kept: list[bytes]) -> None:
    """Put `kept` in the place of all the `lines` of `file`, if they differ; at no moment is there less."""
    if kept == lines:
        return
    replace(file, b"".join(kept))


def replace(file: Path, content: bytes) -> None:
    """Give `file` another content; whatever comes between, it has the former one or this. Raises `OSError`."""
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
