"""Live edits: hyperparameters that may change while a run trains.

A `Request` is a name and whatever JSON value somebody sent. `LiveValues.decide` turns it into an `Edit`, applied or
refused with the reason. `Trainer.edit` calls it between two iterations, and `Trainer.apply_live_values` puts the new
values into effect.
"""

import dataclasses
import difflib
import math
import time
import typing
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, Setting, shown

SCHEDULE = "schedule"
"""The value of `epsilon` or `beta` while it follows its schedule, as both do at first"""
Value = float | int | str
"""A number of the setting's own type, or `SCHEDULE`"""

PAGE_SCHEDULE = -1.0
"""How the dashboard's page, which only knows numbers, says `SCHEDULE`"""


@dataclasses.dataclass(frozen=True)
class LiveSetting:
    """A setting that may change during a run."""

    name: str
    field: str
    """Field of the settings that it belongs to: `epsilon_values` for `epsilon`"""
    kind: type[float] | type[int]
    setting: Setting

    @property
    def scheduled(self) -> bool:
        return self.field != self.name

    @property
    def suggested(self) -> tuple[float, float]:
        """Range of the slider on the page."""
        low, high = self.setting.suggested
        return (PAGE_SCHEDULE if self.scheduled else low, high)

    @property
    def bounds_on_page(self) -> str:
        """The values that may be typed on the page, in words."""
        return f"{self.setting.bounds}{f', or {PAGE_SCHEDULE:g} for the schedule' if self.scheduled else ''}"

    def check(self, value: Any) -> Value:
        """`value`, any JSON, as the type of this setting. Raises `ConfigError` if it does not fit."""
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
    """Every live setting by name, in the order of the schema."""
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
    """A requested edit, not checked yet."""

    name: str
    value: Any
    source: str
    id: str = ""
    undo: bool = False


@dataclasses.dataclass(frozen=True)
class Edit:
    """A request that was applied or refused: one line of `hparam_edits.jsonl`."""

    time: float
    """Seconds since 1970"""
    env_step: int
    update: int
    """Number of updates made when it was decided; it applies from the next one"""
    name: str
    old: Value | None
    """Previous value; None for an unknown name"""
    new: Any
    """The value applied or refused, shortened if long"""
    taken: bool
    source: str
    reason: str = ""
    id: str = ""
    undo: bool = False

    def __str__(self) -> str:
        if not self.taken:
            return f"refused: {self.reason}"
        return f"{self.name} {shown(self.old)} → {shown(self.new)} ({self.source})"


class LiveValues:
    """The settings of a run with its edits applied: the one place where a live value is kept."""

    def __init__(self, config: TrainConfig) -> None:
        self.settings = live_settings()
        self.config = config  # as edited
        self._configured = config  # as the run was started
        self._numbers: dict[str, float] = {}  # those that replace a schedule
        self._edited: set[str] = set()

    @property
    def values(self) -> dict[str, Value]:
        """The present value of every live setting."""
        flat = self.config.to_dict()
        return {
            name: self._numbers.get(name, SCHEDULE) if live.scheduled else flat[name]
            for name, live in self.settings.items()
        }

    def decide(self, request: Request, env_step: int, update: int) -> Edit:
        """Apply the request if its name and value are valid, else refuse it. Never raises."""
        name, new, reason, old = request.name, request.value, "", None
        try:
            if not isinstance(name, str) or name not in self.settings:
                near = _near(str(name), self.settings)
                hint = f"did you mean {near}?" if near else f"{', '.join(self.settings)} can"
                raise ConfigError(f"{shown(name)} cannot be changed during a run; {hint}")
            old = self.values[name]
            new = self.settings[name].check(new)
            self._set(name, new)
        except ConfigError as error:
            reason = str(error)
            name, new = shown(name), new if _is_plain(new) else shown(new)
        return Edit(
            time.time(), env_step, update, name, old, new, not reason, request.source, reason, request.id, request.undo
        )

    def state(self) -> dict[str, Any]:
        """JSON-ready: the value of every setting that was ever edited, and what the run's settings said then."""
        values = self.values
        return {
            name: {"value": values[name], "configured": self._configured_as(live)}
            for name, live in self.settings.items()
            if name in self._edited
        }

    def load(self, state: Mapping[str, Any]) -> list[Request]:
        """Take over a `state()`. Returns requests that restore settings changed since: a flag given later wins."""
        overruled, configured = [], self.values
        for name, stored in state.items():
            live = self.settings[name]
            self._set(name, stored["value"])
            if stored["configured"] != self._configured_as(live):
                overruled.append(Request(name, configured[name], "command line"))
        return overruled

    def _set(self, name: str, value: Value) -> None:
        self._edited.add(name)
        if not self.settings[name].scheduled:
            self.config = self.config.replace(**{name: value})
        elif value == SCHEDULE:
            self._numbers.pop(name, None)
        else:
            self._numbers[name] = float(value)

    def _configured_as(self, live: LiveSetting) -> Any:
        """What the run's settings say about a live one: for a schedule, all it is made of; or "ladder"."""
        flat = self._configured.to_dict()
        if live.name == "epsilon" and flat["epsilon_ladder"]:
            return "ladder"
        if live.scheduled:
            return {name: value for name, value in flat.items() if name.startswith(f"{live.name}_")}
        return flat[live.field]


def from_page(name: str, value: Any) -> Request:
    """A request from the dashboard's page."""
    live = live_settings().get(name)
    return Request(name, SCHEDULE if live and live.scheduled and value == PAGE_SCHEDULE else value, "dashboard")


def for_page(values: Mapping[str, Value]) -> dict[str, float]:
    return {name: PAGE_SCHEDULE if isinstance(value, str) else float(value) for name, value in values.items()}


def new_request(name: str, value: Any, undo: bool = False) -> Request:
    """A request from `tune`, with an id by which its answer is found in the record."""
    return Request(name, value, "tune", uuid.uuid4().hex, undo)


def _near(name: str, known: Iterable[str]) -> str:
    """The setting that may be meant by initials (`lr`), a part (`eps`) or a wrong spelling; empty if none is near."""
    name = name.lower().replace("-", "_")
    initials = {"".join(word[0] for word in each.split("_")): each for each in known}
    parts = [each for each in known if name in each or each in name]
    return next(iter([initials[name]] if name in initials else parts or difflib.get_close_matches(name, known)), "")


def _is_plain(value: Any) -> bool:
    """Whether `value` can be recorded as it is: short, and valid JSON for every reader."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return abs(value) < 10**15
    return value is None or (isinstance(value, str) and shown(value) == value)
