"""Live edits of a run: `tune`'s inbox, edits repeated from another run, and the record of all of them.

The record, `hparam_edits.jsonl`, has a line for each edit asked for, taken or refused. The present values and the edit
to undo are read from it.
"""

import collections
import contextlib
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

from atari_dqn.config.live import Edit, LiveValues, Request, live_settings
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.runs.directory import named
from atari_dqn.runs.records import keep_lines, line, read_rows
from atari_dqn.system.files import append

RECORD, INBOX = "hparam_edits.jsonl", "edits_asked"
POLL_SECONDS = 0.1
"""Seconds between looks into the inbox: reading a directory takes microseconds, but so may a tick."""


class Inbox:
    """Directory of requests, one file each, that `tune` fills and the run empties."""

    def __init__(self, run_dir: Path) -> None:
        self._directory = run_dir / INBOX
        self._due = 0.0

    def put(self, request: Request) -> Path:
        """Leave a request. Returns its file, which the run removes when it has seen it."""
        self._directory.mkdir(exist_ok=True)
        file = self._directory / f"{time.time_ns():020}-{request.id}.json"
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(dataclasses.asdict(request)))
        return partial.rename(file)

    def clear(self, before: int) -> None:
        """Discard requests to an earlier process, made before that time in ns since 1970. Never raises.

        Whoever made them was told that the process had ended.
        """
        for file in self._files():
            if file.name < f"{before:020}":
                with contextlib.suppress(OSError):
                    file.unlink()

    def take(self) -> list[Request]:
        """New requests, oldest first; looks only every `POLL_SECONDS`. Never raises."""
        now = time.monotonic()
        if now < self._due:
            return []
        self._due = now + POLL_SECONDS
        taken = []
        for file in self._files():
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
                # A file that does not fit was not written by tune: nobody waits for an answer. It is tried once.
                content = file.read_bytes()
                file.unlink()
                asked = json.loads(content)
                taken.append(Request(asked["name"], asked["value"], "tune", str(asked["id"]), asked["undo"] is True))
        return taken

    def _files(self) -> list[Path]:
        try:
            return sorted(self._directory.glob("*.json"))
        except OSError:
            return []


class EditDesk:
    """Edits of a run under way: its inbox, another run's edits to repeat, and its record."""

    def __init__(self, run_dir: Path, repeated: Sequence[Edit] = (), env_step: int = 0, update: int = 0) -> None:
        """`repeated`: another run's edits, made again here unless they came before `env_step` and `update`."""
        self._inbox, self._record = Inbox(run_dir), run_dir / RECORD
        self.lines = len(read_rows(self._record))
        """Number of lines in the record, which checkpoints store."""
        ahead = (edit for edit in repeated if (edit.env_step, edit.update) > (env_step, update))
        self._repeated = collections.deque(sorted(ahead, key=lambda edit: (edit.env_step, edit.update)))

    def asked(self, env_step: int, update: int) -> list[Request]:
        """New requests, and repeated edits that are due at these counts.

        Both counts matter: while every env is being reset, an iteration makes updates but no env step.
        """
        due = []
        while self._repeated and (self._repeated[0].env_step, self._repeated[0].update) <= (env_step, update):
            edit = self._repeated.popleft()
            due.append(Request(edit.name, edit.new, "replay", undo=edit.undo))
        return due + self._inbox.take()

    def record(self, edit: Edit) -> None:
        """Append a line to the record, where `tune` finds it by its id. Raises `OSError`; then nothing is appended."""
        append(self._record, line(dataclasses.asdict(edit)))
        self.lines += 1


def read_edits(run_dir: Path) -> list[Edit]:
    """The record of a run, oldest first; an absent one is empty. Raises `ConfigError` for an invalid line."""
    return _parsed(run_dir / RECORD)


def discard_edits(run_dir: Path, lines: int) -> list[Edit]:
    """Discard all but the first `lines` of a run's record. Returns the discarded edits that had been taken.

    Raises `ConfigError` or `OSError`; then nothing is discarded.
    """
    discarded = [edit for edit in read_edits(run_dir)[lines:] if edit.taken]
    keep_lines(run_dir / RECORD, lambda index, _: index < lines)
    return discarded


def recorded_edits(file: Path) -> list[Edit]:
    """The taken edits of another run, or of its record, to be repeated. Raises `ConfigError` when it is invalid."""
    found = named(file, takes="run file", prefix="--replay-edits ")
    try:
        return [edit for edit in _parsed(found.path / RECORD if found.kind == "run" else file) if edit.taken]
    except ConfigError as error:
        raise ConfigError(f"--replay-edits {error}") from None


def live_values(config: TrainConfig, edits: Sequence[Edit]) -> LiveValues:
    """The live settings after the edits."""
    live = LiveValues(config)
    for edit in edits:
        if edit.taken:
            live.decide(Request(edit.name, edit.new, edit.source), edit.env_step, edit.update)
    return live


def to_undo(edits: Sequence[Edit]) -> Edit | None:
    """The newest taken edit that is not undone yet; None without one."""
    standing: list[Edit] = []
    for edit in edits:
        if edit.taken and edit.undo and standing:
            standing.pop()
        elif edit.taken:
            standing.append(edit)
    return standing[-1] if standing else None


def _parsed(file: Path) -> list[Edit]:
    known, edits = live_settings(), []
    for number, row in enumerate(read_rows(file), start=1):
        try:
            edit = Edit(**row)
            edit = dataclasses.replace(edit, time=float(edit.time), update=int(edit.update))
            for value in (edit.old, edit.new) if edit.taken else ():
                known[edit.name].check(value)
        except (ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{file}, line {number}, is not an edit: {error}; fix or delete that line") from None
        edits.append(edit)
    return edits
