"""Files of records that only grow: records flow in, and stand on the disk whole or not at all.

Where the disk is full or fails, records wait in memory and are written, in their order, as soon as that works again.
"""

from __future__ import annotations

import collections
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from atari_dqn.config.setting import ConfigError, shown
from atari_dqn.system.files import append, rewrite

MOST_WAITING = 10_000
"""Records kept while they cannot be written, some megabytes; then the oldest are lost."""


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


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


Fields = Mapping[str, Callable[[Any], bool]]
"""What a row must have: a name, and whether a value is of its kind."""


EVALUATION: Fields = {
    "protocol": lambda value: isinstance(value, str),
    "epsilon": is_number,
    "mean": is_number,
    "ci95": is_interval,
}


def read_rows(file: Path, fields: Fields | None = None, having: str = "env_step") -> list[dict[str, Any]]:
    """The rows of one of a run's `.jsonl` files, those `having` something; none when the file is absent. A torn last
    row is left out.

    Raises `ConfigError` for a row that is none: without an env step or one of the `fields`, as a hand may leave it.
    """
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
        if having not in row:
            continue
        for name, fits in ({"env_step": _is_count} | dict(fields or {})).items():
            if name not in row or not fits(row[name]):
                there = f"its {name} is {shown(row[name])}" if name in row else f"it has no {name}"
                raise ConfigError(f"{file}, line {number}, is no row: {there}")
        rows.append(row)
    return rows


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63
