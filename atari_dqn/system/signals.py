"""What SIGINT, SIGTERM and SIGHUP mean to a training: signals flow in, a request to stop at the next quiet point flows
out.

The second one ends the process at once; whatever it interrupts can be interrupted by a power cut as well.
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
    """`with StopRequest() as stop:` the first signal is remembered, the second ends the process.

    SIGHUP, of a terminal that is gone, is one of them unless it is ignored, as under nohup.
    """

    def __init__(self) -> None:
        self._asked = self._breaks = False
        self._former: dict[int, Any] = {}

    def asked(self) -> bool:
        return self._asked

    def check(self) -> None:
        """Raise `KeyboardInterrupt` if a stop was asked for: between two parts of the start, with nothing to save."""
        if self._asked:
            raise KeyboardInterrupt

    @contextlib.contextmanager
    def breaking(self) -> Iterator[None]:
        """Around a wait in which nothing can be torn: a signal, now or before, ends it as `check` does."""
        self._breaks = True
        try:
            self.check()
            yield
        finally:
            self._breaks = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            signal.signal(number, signal.SIG_IGN)  # a shell that ends and its terminal send one each
            for stream in (sys.stdout, sys.stderr):  # which nobody reads, and which would raise when written to
                if stream is not None and stream.isatty():
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        elif self._asked:
            if sys.stdout is not None and sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the panel had hidden the cursor
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
        if not self._asked:  # else the process is ending, and a second one may yet come
            for number, handler in self._former.items():
                signal.signal(number, handler)
