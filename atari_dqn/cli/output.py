"""Output of commands: the console, and a status line."""

from __future__ import annotations

import os
import select
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # doctor must run without rich
    from rich.console import Console
    from rich.status import Status

TERMINAL_SECONDS = 0.25
"""Seconds between redraws on a terminal"""
FIRST_LINE_SECONDS, LINE_SECONDS = 5.0, 10.0
"""Seconds to the first line, and between lines, where the output is not a terminal"""


def output_is_closed() -> bool:
    """Whether standard output is a pipe whose reader has left."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)  # errors are always reported
    return bool(poll.poll(0))


def release_output() -> None:
    """Drop output that cannot be written: its disk is full, or its reader has left.

    Otherwise the next flush would fail: at the start of a child process, or at exit, with an exit code of its own.
    """
    if sys.stdout is None:  # closed before Python began
        return
    try:
        sys.stdout.flush()
    except OSError:
        output = sys.stdout.fileno()
        kept, nowhere = os.dup(output), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, output)
        sys.stdout.flush()
        os.dup2(kept, output)
        os.close(kept)
        os.close(nowhere)


def open_console() -> Console:
    """The console that a command prints to, without markup; no closed pipe or full disk ends the command."""
    from rich.console import Console

    class Steady(Console):
        def on_broken_pipe(self) -> None:
            # rich would end the process here, and a training with it, because `| head` or a pager closed the pipe.
            self.quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

        def _write_buffer(self) -> None:
            try:
                super()._write_buffer()
            except BrokenPipeError:
                raise
            except OSError:
                self._buffer.clear()
                release_output()

    return Steady(markup=False)


def redraws(console: Console) -> bool:
    """Whether to redraw a panel on it: a terminal, unless it is quiet, as the panel takes the program's own output."""
    return console.is_terminal and not console.quiet


def say(console: Console, text: str, *, wrap: bool = False) -> None:
    """Print text without highlighting; with `wrap`, a terminal breaks long lines between words."""
    console.print(text, highlight=False, soft_wrap=not (wrap and console.is_terminal))


class StatusLine:
    """`with StatusLine(console, "starting workers") as status: ... status.update(f"{done} of {total}")`."""

    def __init__(self, console: Console, first: str) -> None:
        self._console = console
        self._live: Status | None = console.status(first) if redraws(console) else None
        self._due = time.monotonic() + (TERMINAL_SECONDS if self._live else FIRST_LINE_SECONDS)

    def update(self, text: str) -> None:
        """Show `text` if it is time; to be called at every step."""
        now = time.monotonic()
        if now < self._due:
            return
        self._due = now + (TERMINAL_SECONDS if self._live else LINE_SECONDS)
        if self._live:
            self._live.update(text)
        else:
            say(self._console, text)

    def __enter__(self) -> StatusLine:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
