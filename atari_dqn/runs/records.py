"""Records of a run, one JSON row a line: appending, discarding and reading them.

While the disk is full or fails, rows wait in memory; they are written in order as soon as that works again.
"""

import collections
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atari_dqn.config.setting import ConfigError
from atari_dqn.system.files import append, replace

MAX_WAITING = 10_000
"""Number of rows kept in memory while they cannot be written, some megabytes; older ones are lost."""


def line(row: Mapping[str, Any]) -> bytes:
    """A row as a line of a record."""
    return (json.dumps(row) + "\n").encode()


def discard_after(file: Path, env_step: int) -> None:
    """Discard the rows past `env_step`, which a resume repeats, and a last line that a kill left incomplete."""
    keep_lines(file, lambda _, text: (row := _row(text)) is not None and row["env_step"] <= env_step)


def keep_lines(file: Path, wanted: Callable[[int, bytes], bool]) -> None:
    """Discard the lines of `file` that are incomplete or not `wanted`, which is given a line's index and its text.

    Raises `OSError`; then nothing is discarded.
    """
    try:
        lines = file.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = [text for index, text in enumerate(lines) if text.endswith(b"\n") and wanted(index, text)]
    if kept != lines:
        replace(file, b"".join(kept))


class Journal:
    """Appends rows to `file` and keeps those that cannot be written; tells the user when that begins and ends."""

    def __init__(self, file: Path, say: Callable[[str], None]) -> None:
        self._file, self._say = file, say
        self._waiting: collections.deque[bytes] = collections.deque(maxlen=MAX_WAITING)
        self._lost = 0
        """Number of rows that were lost because too many waited."""
        self._error = ""
        """Why rows wait; empty while none does."""

    def write(self, row: bytes) -> None:
        """Append a row, now or later. Never raises `OSError`."""
        self._lost += len(self._waiting) == MAX_WAITING
        self._waiting.append(row)
        late = len(self._waiting) - 1
        self._catch_up()
        if not self._waiting and self._error:
            self._say(f"{self._file} is written again: {late:,} rows were late{self._losses()}")
            self._lost, self._error = 0, ""

    def close(self) -> None:
        """Try once more to write what waits, and tell the user what is lost."""
        self._catch_up()
        if self._waiting:
            self._say(f"{self._file}: {len(self._waiting):,} rows were never written: {self._error}{self._losses()}")

    def _catch_up(self) -> None:
        try:
            while self._waiting:
                append(self._file, self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            if not self._error:
                self._say(f"cannot write {self._file}: {error.strerror}; its rows wait in memory")
            self._error = error.strerror or str(error)

    def _losses(self) -> str:
        return f"; {self._lost:,} older ones are lost" if self._lost else ""


def read_rows(file: Path, *fields: str) -> list[dict[str, Any]]:
    """The rows of a record that have all `fields`, oldest first, without an incomplete last one.

    An absent record has none. Raises `ConfigError` if the file cannot be read, or a line of it was edited by hand and
    is not a row any more.
    """
    try:
        lines = file.read_text().splitlines() if file.is_file() else []
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from None
    rows = []
    for number, text in enumerate(lines, start=1):
        if (row := _row(text)) is not None:
            rows.append(row)
        elif number < len(lines):
            raise ConfigError(f"{file}, line {number}, is not a row of a record; fix or delete that line")
    return [row for row in rows if row.keys() >= set(fields)]


def _row(text: str | bytes) -> dict[str, Any] | None:
    """The row in a line; None for anything else, which has no env step."""
    try:
        row = json.loads(text)
        return row if row["env_step"] >= 0 else None
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
