"""Files of records that only grow: records flow in, and stand on the disk whole or not at all.

Where the disk is full or fails, records wait in memory and are written, in their order, as soon as that works again.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MOST_WAITING = 10_000
"""Records kept while they cannot be written, some megabytes; then the oldest are lost."""


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


def line(row: Mapping[str, Any]) -> bytes:
    """A row of one of a run's `.jsonl` files."""
    return (json.dumps(row) + "\n").encode()


def cut_back(file: Path, env_step: int) -> None:
    """Drop the rows of a record past `env_step` (a resume repeats them), and a last line torn by a kill.

    Raises `OSError`; then nothing is dropped.
    """
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    rewrite(file, lines, [text for text in lines if _step_of(text) <= env_step])


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


def _step_of(text: bytes) -> float:
    try:
        return float(json.loads(text)["env_step"]) if text.endswith(b"\n") else float("inf")
    except (ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return float("inf")


class Journal:
    """Appends to `file` what can be appended, and keeps the rest; tells the user when that begins and when it ends."""

    def __init__(self, file: Path, say: Callable[[str], None]) -> None:
        self._file, self._say = file, say
        self._waiting: collections.deque[bytes] = collections.deque(maxlen=MOST_WAITING)
        self._lost = 0
        self._trouble = ""

    def write(self, record: bytes) -> None:
        """Never raises for the disk's sake."""
        self._lost += len(self._waiting) == MOST_WAITING
        self._waiting.append(record)
        late = len(self._waiting) - 1
        self._catch_up()
        if not self._waiting and self._trouble:
            self._say(f"{self._file} is written again: {late:,} records came late{self._losses()}")
            self._lost, self._trouble = 0, ""

    def close(self) -> None:
        """Try once more; what cannot be written now never will be."""
        self._catch_up()
        if self._waiting:
            self._say(
                f"{self._file}: {len(self._waiting):,} records were never written: {self._trouble}{self._losses()}"
            )

    def _catch_up(self) -> None:
        try:
            while self._waiting:
                append(self._file, self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            if not self._trouble:
                self._say(f"{self._file} cannot be written: {error.strerror}; its records wait in memory until it can")
            self._trouble = error.strerror or str(error)

    def _losses(self) -> str:
        return f", and {self._lost:,} older ones are lost" if self._lost else ""
