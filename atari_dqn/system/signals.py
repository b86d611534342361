"""SIGINT, SIGTERM and SIGHUP as a request to stop at the next quiet point of the training.

A second signal ends the process at once, which is as safe as a power cut at that moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any


class StopRequest:
    """Context in which the first signal is remembered and the second one ends the process.

    SIGHUP, sent when the terminal closes, counts unless it is ignored, as under nohup.
    """

    def __init__(self) -> None:
        self._asked = self._breaks = False
        self._former: dict[int, Any] = {}

    def asked(self) -> bool:
        return self._asked

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if a stop was requested; for the start of a run, when there is nothing to save."""
        if self._asked:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def breaking(self) -> Iterator[None]:
        """Context of a wait that is safe to interrupt: a signal, even an earlier one, raises `KeyboardInterrupt`."""
        self._breaks = True
        try:
            self.check()
            yield
        finally:
            self._breaks = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)  # a closing shell and its terminal both send one
            for stream in (sys.stdout, sys.stderr):  # writing to a closed terminal would raise
                if stream is not None and stream.isatty():
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        elif self._asked:
            if sys.stdout is not None and sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the live panel hides the cursor
            os._exit(128 + number)
        self._asked = True
        if self._breaks:
            raise KeyboardInterrupt

    def __enter__(self) -> StopRequest:
        hung_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
        for number in (signal.SIGINT, signal.SIGTERM, *hung_up):
            self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._asked:  # otherwise the process is ending, and a second signal may follow
            for number, handler in self._former.items():
                signal.signal(number, handler)
