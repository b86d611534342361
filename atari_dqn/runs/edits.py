"""Where live edits come from and are remembered.

Flow in: requests from `tune`'s inbox in the run's directory, and a former run's edits to repeat. Flow out:
`hparam_edits.jsonl`, a line for each edit asked for, taken or refused; and, read from it, what holds, and what to undo.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from atari_dqn.config.live import Edit, LiveValues, Request, Value, live_settings
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, shown
from atari_dqn.runs.records import line, read_rows
from atari_dqn.system.files import append, rewrite

RECORD, INBOX = "hparam_edits.jsonl", "edits_asked"
LAST_TIME = 2**33
"""Seconds since 1970: the year 2242."""
POLL_SECONDS = 0.1
"""Seconds between looks into the inbox: a directory is read in microseconds, yet a tick may last no longer."""
MOST_BYTES = 2**16
"""Of a request's file; tune writes a few hundred."""


class Inbox:
    """A directory of requests, one file each, that `tune` fills and the run empties."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / INBOX
        self._due = 0.0

    def put(self, request: Request) -> Path:
        """Leave a request. Returns its file, which is gone as soon as the run has seen it."""
        self._directory.mkdir(exist_ok=True)
        file = self._directory / f"{time.time_ns():020}-{request.id}.json"
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(dataclasses.asdict(request)))
        return partial.rename(file)

    def clear(self, before: int) -> None:
        """Forget what was asked of a former process, before that time in ns since 1970. Never raises.

        Whoever asked was told that it had ended.
        """
        for file in self._files():
            if file.name < f"{before:020}":
                with contextlib.suppress(OSError):
                    file.unlink()

    def take(self) -> list[Request]:
        """What was asked for since the last call, oldest first; looks only every `POLL_SECONDS`. Never raises."""
        now = time.monotonic()
        if now < self._due:
            return []
        self._due = now + POLL_SECONDS
        taken = []
        for file in self._files():
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
                # What does not fit was not written by tune: nobody waits for an answer, and none is tried twice.
                with file.open("rb") as opened:
                    content = opened.read(MOST_BYTES)
                file.unlink()
                asked = json.loads(content)
                taken.append(Request(asked["name"], asked["value"], "tune", str(asked["id"]), asked["undo"] is True))
        return taken

    def _files(self) -> list[Path]:
        try:
            # Only files: a directory cannot be read, and a pipe would be waited for.
            return sorted(file for file in self._directory.glob("*.json") if file.is_file())
        except OSError:
            return []


class EditDesk:
    """Where a run's edits come from and are remembered: its inbox, a former run's edits to repeat, and its record."""

    def __init__(self, run_dir: Path, repeated: Sequence[Edit] = (), env_step: int = 0, update: int = 0) -> None:
        """`repeated` are another run's edits; those up to these counts, where this run begins or goes on, are past."""
        self._inbox, self._record = Inbox(run_dir), run_dir / RECORD
        self.lines = len(read_rows(self._record))
        """of the record; a checkpoint remembers how many there were"""
        ahead = (edit for edit in repeated if (edit.env_step, edit.update) > (env_step, update))
        self._repeated = collections.deque(sorted(ahead, key=lambda edit: (edit.env_step, edit.update)))

    def asked(self, env_step: int, update: int) -> list[Request]:
        """Edits asked for by now, and those to be repeated that were made by these counts.

        Both count: where every env is reset at once, an iteration makes updates and no env step.
        """
        due = []
        while self._repeated and (self._repeated[0].env_step, self._repeated[0].update) <= (env_step, update):
            edit = self._repeated.popleft()
            due.append(Request(edit.name, edit.new, "replay", undo=edit.undo))
        return due + self._inbox.take()

    def record(self, edit: Edit) -> None:
        """Append a line to `hparam_edits.jsonl`; whoever asked finds it there by the request's id.

        Raises `OSError`; then nothing is appended.
        """
        append(self._record, line(dataclasses.asdict(edit)))
        self.lines += 1


def read_edits(run_dir: Path) -> list[Edit]:
    """The record of a run, oldest first; empty when nothing was ever asked. Raises `ConfigError` for a torn one."""
    return _parsed(run_dir / RECORD)


def forget_edits(run_dir: Path, lines: int) -> list[Edit]:
    """Cut the record of a run back to its first `lines`. Returns the taken edits that are gone.

    Raises `ConfigError` for a torn record, and `OSError`; then nothing is cut.
    """
    try:
        forgotten = [edit for edit in read_edits(run_dir)[lines:] if edit.taken]
    except ConfigError as error:
        raise ConfigError(f"{error}; mend or remove that line") from None
    if (run_dir / RECORD).is_file():
        stored = (run_dir / RECORD).read_bytes().splitlines(keepends=True)
        rewrite(run_dir / RECORD, stored, [text for text in stored[:lines] if text.endswith(b"\n")])
    return forgotten


def recorded_edits(file: Path) -> list[Edit]:
    """The taken edits of another run's record, to be repeated. Raises `ConfigError` when it is none or is unsound."""
    if not file.is_file():
        raise ConfigError(f"--replay-edits {file} is no file; a run's {RECORD} is wanted")
    try:
        return [edit for edit in _parsed(file) if edit.taken]
    except ConfigError as error:
        raise ConfigError(f"--replay-edits {error}") from None


def present_values(config: TrainConfig, edits: Sequence[Edit]) -> dict[str, Value]:
    """What the edits have made of the config's values."""
    values = LiveValues(config).values
    for edit in edits:
        if edit.taken:
            values[edit.name] = edit.new
    return values


def to_undo(edits: Sequence[Edit]) -> Edit | None:
    """The newest taken edit that was not undone yet; None when there is none."""
    standing: list[Edit] = []
    for edit in edits:
        if edit.taken and edit.undo and standing:
            standing.pop()
        elif edit.taken:
            standing.append(edit)
    return standing[-1] if standing else None


def _parsed(file: Path) -> list[Edit]:
    fields, known, edits = dataclasses.fields(Edit), live_settings(), []
    for number, row in enumerate(read_rows(file), start=1):
        place = f"{file}, line {number}, is no edit"
        missing = [field.name for field in fields if field.default is dataclasses.MISSING and field.name not in row]
        if missing:
            raise ConfigError(f"{place}: {', '.join(sorted(missing))} missing")
        edit = Edit(**{field.name: row[field.name] for field in fields if field.name in row})
        for name, kind in (("env_step", int), ("update", int), ("name", str), ("taken", bool), ("source", str)):
            if type(getattr(edit, name)) is not kind:
                raise ConfigError(f"{place}: its {name} is {shown(getattr(edit, name))}")
        if isinstance(edit.time, bool) or not isinstance(edit.time, (int, float)) or not 0 <= edit.time < LAST_TIME:
            raise ConfigError(f"{place}: its time is {shown(edit.time)}")
        if edit.taken:
            if edit.name not in known:
                raise ConfigError(f"{place}: {shown(edit.name)} cannot be changed during a run")
            try:
                for value in (edit.old, edit.new):
                    known[edit.name].check(value)
            except ConfigError as error:
                raise ConfigError(f"{place}: {error}") from None
        edits.append(edit)
    return edits
