"""SIGINT, SIGTERM and SIGHUP as a request to stop at the next quiet point of the training.

A second signal ends the process at once, which is as safe as a power cut at that moment.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any


class StopRequest:
    """Context in which the first signal is remembered and the second one ends the process, or raises
    `KeyboardInterrupt` if it is not to `kill`.

    SIGHUP, sent when the terminal closes, counts unless it is ignored, as under nohup. In a thread that is not the main
    one there are no handlers, and the caller's own decide. One that is left in another thread than it was entered in,
    which may not restore the former handlers, passes on the next signal and restores them then.
    """

    def __init__(self, *, kill: bool = True) -> None:
        self._asked = self._breaks = self._left = False
        self.signal: int | None = None
        """The first signal"""
        self._kill = kill
        self._former: dict[int, Any] = {}

    def asked(self) -> bool:
        return self._asked

    def ask(self) -> None:
        """Ask for a stop as a signal does."""
        self._asked = True

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
        if self._left:
            self.__exit__()
            signal.raise_signal(number)
            return
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)  # a closing shell and its terminal both send one
            for stream in (sys.stdout, sys.stderr):  # writing to a closed terminal would raise
                if stream is not None and stream.isatty():
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        elif self.signal and not self._kill:
            raise KeyboardInterrupt
        elif self._asked and self._kill:
            if sys.stdout is not None and sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the live panel hides the cursor
            os._exit(128 + number)
        self._asked, self.signal = True, self.signal or number
        if self._breaks:
            raise KeyboardInterrupt

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers in no other thread
            hung_up = () if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else (signal.SIGHUP,)
            for number in (signal.SIGINT, signal.SIGTERM, *hung_up):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            self._left = True
            return
        for number, handler in self._former.items():
            if signal.getsignal(number) == self._handle:  # not for a SIGHUP that came: see `_handle`
                signal.signal(number, handler or signal.SIG_DFL)
