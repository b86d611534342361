"""The findings of doctor's checks: how serious each is, what was found and what to do about it.

It imports the standard library alone: doctor must start where a library is missing or broken.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Literal

Level = Literal["ok", "note", "warning", "error"]


@dataclasses.dataclass(frozen=True)
class Finding:
    """One result of a check."""

    level: Level
    text: str
    remedy: str = ""
    """What to do about it; empty where nothing needs to be done."""


Check = Callable[[], Iterator[Finding]]


def run_check(check: Check) -> Iterator[Finding]:
    """Yield the findings of `check`. Whatever it raises, a failed import included, becomes a finding too."""
    try:
        yield from check()
    except (Exception, SystemExit) as error:
        yield Finding("error", f"cannot check: {type(error).__name__}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
