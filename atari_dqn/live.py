"""Hyperparameters that may change while a run is on.

Flow in: requests, a name and whatever JSON value somebody asked for, from `tune`'s inbox, the dashboard's page or a
former run's record. Flow out: an `Edit` for each, taken or refused and why, which the trainer obeys between two
iterations and `hparam_edits.jsonl` remembers. Names, types and bounds are those of the config's `live` settings.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import json
import math
import os
import reprlib
import time
import typing
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from atari_dqn.config import ConfigError, Setting, TrainConfig
from atari_dqn.runs import read_rows

SCHEDULE = "schedule"
"""The value of `epsilon` or `beta` that follows its schedule, as both do at first."""
Value = float | int | str
"""A number of the setting's own type, or `SCHEDULE`."""

RECORD, INBOX = "hparam_edits.jsonl", "edits_asked"
LAST_TIME = 2**33
"""Seconds since 1970: the year 2242."""
PAGE_SCHEDULE = -1.0
"""How the dashboard's page, which knows numbers only, says `SCHEDULE`."""
POLL_SECONDS = 0.1
"""Seconds between looks into the inbox: a directory is read in microseconds, yet a tick may last no longer."""
MOST_BYTES = 2**16
"""Of a request's file; tune writes a few hundred."""


@dataclasses.dataclass(frozen=True)
class LiveSetting:
    """A setting that may change during a run."""

    name: str
    field: str
    """the config's: `epsilon_values` for `epsilon`"""
    kind: type[float] | type[int]
    setting: Setting

    @property
    def scheduled(self) -> bool:
        return self.field != self.name

    @property
    def suggested(self) -> tuple[float, float]:
        """The range of the slider on the page; a scheduled one's begins with `PAGE_SCHEDULE`."""
        low, high = self.setting.suggested
        return (PAGE_SCHEDULE if self.scheduled else low, high)

    def configured(self, config: TrainConfig) -> Value:
        """Its value before any edit."""
        value: Value = SCHEDULE if self.scheduled else config.to_dict()[self.name]
        return value

    def check(self, value: Any) -> Value:
        """`value`, any JSON, as this setting's type. Raises `ConfigError` with the reason when it has none."""
        if self.scheduled and value == SCHEDULE:
            return SCHEDULE
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            wanted = f"a number, or {SCHEDULE}" if self.scheduled else "a number"
            raise ConfigError(f"{self.name} is {_shown(value)}; it must be {wanted}")
        if self.kind is int and isinstance(value, float) and math.isfinite(value):
            if value != int(value):
                raise ConfigError(f"{self.name} is {value}; it must be a whole number")
            value = int(value)
        fault = self.setting.fault(value)
        if fault:
            raise ConfigError(f"{self.name} {fault}")
        return self.kind(value)


def live_settings() -> dict[str, LiveSetting]:
    """Every live setting by its name, in the config's order."""
    found = {}
    for section in typing.get_type_hints(TrainConfig).values():
        for field, hint in typing.get_type_hints(section, include_extras=True).items():
            kind = (typing.get_args(typing.get_args(hint)[0]) or typing.get_args(hint))[0]
            for extra in getattr(hint, "__metadata__", ()):
                if isinstance(extra, Setting) and extra.live:
                    found[extra.live] = LiveSetting(extra.live, field, kind, extra)
    return found


@dataclasses.dataclass(frozen=True)
class Request:
    """An edit asked for; nothing about it is checked yet."""

    name: str
    value: Any
    source: str
    id: str = ""
    undo: bool = False


@dataclasses.dataclass(frozen=True)
class Edit:
    """A request decided upon: one line of `hparam_edits.jsonl`."""

    time: float
    """seconds since 1970"""
    env_step: int
    update: int
    """it holds from the update after this one on"""
    name: str
    old: Value | None
    """None for a name that is none"""
    new: Any
    """taken: the value it has now; refused: what was asked for, shortened if long"""
    taken: bool
    source: str
    reason: str = ""
    """why it was refused"""
    id: str = ""
    undo: bool = False

    def __str__(self) -> str:
        if not self.taken:
            return f"refused: {self.reason}"
        return f"{self.name} {_shown(self.old)} → {_shown(self.new)} ({self.source})"


class LiveValues:
    """The present value of every live setting."""

    def __init__(self, config: TrainConfig) -> None:
        self.settings = live_settings()
        self._config = config
        self.values = {name: live.configured(config) for name, live in self.settings.items()}
        self._edited: set[str] = set()

    def decide(self, request: Request, env_step: int, update: int) -> Edit:
        """Take the request if its name and value are sound, else refuse it. Never raises."""
        name, new, reason = request.name, request.value, ""
        try:
            if not isinstance(name, str) or name not in self.settings:
                raise ConfigError(f"{_shown(name)} cannot be changed during a run; {', '.join(self.settings)} can")
            new = self.settings[name].check(new)
        except ConfigError as error:
            reason = str(error)
        old = self.values[name] if isinstance(name, str) and name in self.values else None
        if reason:
            name, new = _shown(name), new if _is_plain(new) else _shown(new)
        else:
            self.values[name] = new
            self._edited.add(name)
        return Edit(
            time.time(), env_step, update, name, old, new, not reason, request.source, reason, request.id, request.undo
        )

    def state(self) -> dict[str, Any]:
        """JSON-ready: each value ever edited, back to the config's or not, and what the config said then."""
        flat = self._config.to_dict()
        return {
            name: {"value": self.values[name], "configured": flat[live.field]}
            for name, live in self.settings.items()
            if name in self._edited
        }

    def load(self, state: Mapping[str, Any]) -> list[Request]:
        """Take over a `state()`, except where the config was changed since: a flag given later wins.

        Returns requests to that effect, to be decided upon and recorded before anything else.
        """
        flat, overruled = self._config.to_dict(), []
        for name, stored in state.items():
            live = self.settings[name]
            self.values[name] = stored["value"]
            self._edited.add(name)
            if stored["configured"] != flat[live.field]:
                overruled.append(Request(name, live.configured(self._config), "command line"))
        return overruled


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

    def __init__(self, run_dir: Path, repeated: Sequence[Edit] = (), env_step: int = 0) -> None:
        """`repeated` are another run's edits; those up to `env_step`, where this run begins or goes on, are past."""
        self._inbox, self._record = Inbox(run_dir), run_dir / RECORD
        ahead = (edit for edit in repeated if edit.env_step > env_step)
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

        Raises `OSError`; then nothing is appended, not even the start of a line, which would spoil the next.
        """
        line = (json.dumps(dataclasses.asdict(edit)) + "\n").encode()
        with self._record.open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(line) != len(line):
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def from_page(name: str, value: Any) -> Request:
    """A request of the dashboard's page."""
    live = live_settings().get(name)
    return Request(name, SCHEDULE if live and live.scheduled and value == PAGE_SCHEDULE else value, "dashboard")


def for_page(values: Mapping[str, Value]) -> dict[str, float]:
    """`values` as numbers, for the dashboard's page."""
    return {name: PAGE_SCHEDULE if isinstance(value, str) else float(value) for name, value in values.items()}


def new_request(name: str, value: Any, undo: bool = False) -> Request:
    """A request of `tune`'s, with an id by which its answer is found in the record."""
    return Request(name, value, "tune", uuid.uuid4().hex, undo)


def read_edits(run_dir: Path) -> list[Edit]:
    """The record of a run, oldest first; empty when nothing was ever asked. Raises `ConfigError` for a torn one."""
    return _parsed(run_dir / RECORD)


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
                raise ConfigError(f"{place}: its {name} is {_shown(getattr(edit, name))}")
        if isinstance(edit.time, bool) or not isinstance(edit.time, (int, float)) or not 0 <= edit.time < LAST_TIME:
            raise ConfigError(f"{place}: its time is {_shown(edit.time)}")
        if edit.taken:
            if edit.name not in known:
                raise ConfigError(f"{place}: {_shown(edit.name)} cannot be changed during a run")
            try:
                for value in (edit.old, edit.new):
                    known[edit.name].check(value)
            except ConfigError as error:
                raise ConfigError(f"{place}: {error}") from None
        edits.append(edit)
    return edits


def _is_plain(value: Any) -> bool:
    """Safe to write down as it is: short, and JSON that every reader takes."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < 10**15
    return value is None or (isinstance(value, str) and _shown(value) == value)


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**15:
        return f"a number of {value.bit_length() * 3 // 10 + 1} digits or so"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        text = value[:61] if value[:61].isprintable() else ascii(value[:61])
    else:
        text = reprlib.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
