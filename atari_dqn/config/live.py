"""Hyperparameters that may change while a run is on: what an edit is, and which are taken.

Flow in: requests, a name and whatever JSON value somebody asked for. Flow out: an `Edit` for each, taken or refused and
why, which the trainer obeys between two iterations. Names, types and bounds are those of the config's `live` settings.
"""

from __future__ import annotations

import dataclasses
import math
import time
import typing
import uuid
from collections.abc import Mapping
from typing import Any

from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, Setting, shown

SCHEDULE = "schedule"
"""The value of `epsilon` or `beta` that follows its schedule, as both do at first."""
Value = float | int | str
"""A number of the setting's own type, or `SCHEDULE`."""

PAGE_SCHEDULE = -1.0
"""How the dashboard's page, which knows numbers only, says `SCHEDULE`."""


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
            raise ConfigError(f"{self.name} is {shown(value)}; it must be {wanted}")
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
        return f"{self.name} {shown(self.old)} → {shown(self.new)} ({self.source})"


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
                raise ConfigError(f"{shown(name)} cannot be changed during a run; {', '.join(self.settings)} can")
            new = self.settings[name].check(new)
        except ConfigError as error:
            reason = str(error)
        old = self.values[name] if isinstance(name, str) and name in self.values else None
        if reason:
            name, new = shown(name), new if _is_plain(new) else shown(new)
        else:
            self.values[name] = new
            self._edited.add(name)
        return Edit(
            time.time(), env_step, update, name, old, new, not reason, request.source, reason, request.id, request.undo
        )

    def state(self) -> dict[str, Any]:
        """JSON-ready: each value ever edited, back to the config's or not, and what the config said then."""
        return {
            name: {"value": self.values[name], "configured": self._says_of(live)}
            for name, live in self.settings.items()
            if name in self._edited
        }

    def load(self, state: Mapping[str, Any]) -> list[Request]:
        """Take over a `state()`, except where the config was changed since: a flag given later wins.

        Returns requests to that effect, to be decided upon and recorded before anything else.
        """
        overruled = []
        for name, stored in state.items():
            live = self.settings[name]
            self.values[name] = stored["value"]
            self._edited.add(name)
            if stored["configured"] != self._says_of(live):
                overruled.append(Request(name, live.configured(self._config), "command line"))
        return overruled

    def _says_of(self, live: LiveSetting) -> Any:
        """What the config says of a setting, JSON-ready: of a scheduled one all that its schedule is made of; of
        epsilon only that there is a ladder, if there is one."""
        flat = self._config.to_dict()
        if live.name == "epsilon" and flat["epsilon_ladder"]:
            return "ladder"
        if live.scheduled:
            return {name: value for name, value in flat.items() if name.startswith(f"{live.name}_")}
        return flat[live.field]


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


def _is_plain(value: Any) -> bool:
    """Safe to write down as it is: short, and JSON that every reader takes."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < 10**15
    return value is None or (isinstance(value, str) and shown(value) == value)
