"""What a setting is: its meaning, unit, bounds and source, and how bad values are refused."""

import dataclasses
import math
import reprlib
import typing
from typing import Annotated, Any, TypeVar

C = TypeVar("C")

SMALLEST = 2.0**-126
"""Smallest normal float32: anything nearer to 0 becomes 0 before it reaches the optimizer"""


class ConfigError(ValueError):
    """The user's input is wrong; the message says in one line what is wrong and what would be right."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """Metadata of one setting. `low` and `high` are its bounds (inclusive unless `low_open`)."""

    help: str
    unit: str = ""
    low: float | None = None
    high: float | None = None
    low_open: bool = False
    source: str = ""
    structural: str = ""
    """Why a checkpoint only fits the value it was saved under; a resume with another value is refused"""
    live: str = ""
    """Name under which it may change while a run trains; for a schedule, the name of the number that replaces it"""
    suggested: tuple[float, float] = (0.0, 1.0)
    """Range of a live setting's slider, narrower than the bounds"""

    @property
    def bounds(self) -> str:
        if self.low is None or self.high is None:
            return ""
        power = self.high > 2**20 and math.log2(self.high).is_integer()
        high = f"2^{math.log2(self.high):g}" if power else shown_number(self.high)
        return f"{'above' if self.low_open else 'from'} {shown_number(self.low)} to {high}"

    def describe(self) -> str:
        facts = "; ".join(part for part in (self.unit, self.bounds, self.source and f"source: {self.source}") if part)
        return f"{self.help} [{facts}]" if facts else self.help

    def check(self, name: str, value: Any) -> None:
        """Raise `ConfigError` when a number lies outside the bounds or is not finite."""
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                continue
            fault = self.fault(number)
            if fault:
                raise ConfigError(f"{flag(name)} {fault}")

    def fault(self, number: float) -> str:
        """What is wrong with `number`, as the end of a sentence; empty for a valid number."""
        below = self.low is not None and (number <= self.low + SMALLEST if self.low_open else number < self.low)
        above = self.high is not None and number > self.high
        if below or above or (isinstance(number, float) and not math.isfinite(number)):
            return f"is {shown_number(number)}; it must be {self.bounds or 'finite'}"
        return ""


def shown_number(number: float) -> str:
    """`number` for a message: short where that is exact, and never endless digits."""
    if isinstance(number, float):
        short = f"{number:g}"
        return short if float(short) == number else str(number)
    return str(number) if abs(number) < 10**15 else f"a number of {number.bit_length() * 3 // 10 + 1} digits or so"


def flag(name: str) -> str:
    """`learning_rate` -> `--learning-rate`."""
    return "--" + name.replace("_", "-")


def as_written(value: Any) -> str:
    """`value`, as `to_dict` has it, as it is written after its flag."""
    return " ".join(map(str, value)) if isinstance(value, list) else str(value) or '""'


def settings(cls: type) -> dict[str, Setting]:
    """The `Setting` of every field of a config dataclass, its sections included, by flat name."""
    found: dict[str, Setting] = {}
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        extras = getattr(hint, "__metadata__", ())
        found.update((name, extra) for extra in extras if isinstance(extra, Setting))
        base = typing.get_args(hint)[0] if extras else hint
        if dataclasses.is_dataclass(base) and isinstance(base, type):
            found.update(settings(base))
    return found


def help_from_settings(cls: type[C]) -> type[C]:
    """Let tyro print `Setting.describe()` for every field, so that help and checks agree."""
    import tyro  # here, for doctor must run without it

    hints = typing.get_type_hints(cls, include_extras=True)
    for name in cls.__annotations__:
        for extra in hints[name].__metadata__:
            if isinstance(extra, Setting):
                note = tyro.conf.arg(help=extra.describe(), help_behavior_hint=_default_hint)
                cls.__annotations__[name] = Annotated[hints[name], note]
    return cls


def _default_hint(default: str) -> str:
    """What `--help` says about a default; nothing for None and empty ones, which the help itself explains."""
    return f"(default: {default})" if default not in ("", "None") else ""


def shown(value: Any) -> str:
    """`value`, any JSON, for a line of text: short, and without terminal control characters."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return shown_number(value)
    if isinstance(value, str):
        text = value[:61] if value[:61].isprintable() else ascii(value[:61])
    else:
        text = reprlib.repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
