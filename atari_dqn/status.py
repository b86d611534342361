"""How far a command has come, as one line of text: redrawn in place on a terminal, repeated now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.status import Status

TERMINAL_SECONDS = 0.25
"""Seconds between redraws."""
FIRST_LINE_SECONDS, LINE_SECONDS = 5.0, 10.0
"""Seconds to the first line where the output is no terminal, and between lines."""


class StatusLine:
    """`with StatusLine(console, "starting workers") as status: ... status.update(f"{done} of {total}")`."""

    def __init__(self, console: Console, first: str) -> None:
        self._console = console
        self._live: Status | None = console.status(first) if console.is_terminal else None
        self._due = time.monotonic() + (TERMINAL_SECONDS if self._live else FIRST_LINE_SECONDS)

    def update(self, text: str) -> None:
        """Show `text` when it is time; to be called at every step."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + (TERMINAL_SECONDS if self._live else LINE_SECONDS)
        if self._live:
            self._live.update(text)
        else:
            self._console.print(text, highlight=False, soft_wrap=True)

    def __enter__(self) -> StatusLine:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()
