"""What SIGINT and SIGTERM mean to a training: signals flow in, a request to stop at the next quiet point flows out.

The second one ends the process at once; whatever it interrupts can be interrupted by a power cut as well.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

PATIENCE, INSISTENCE = 10.0, 2.0
"""Seconds that a stop waits for the training to come to a quiet point, and between what it does about it then."""


class StopRequest:
    """`with StopRequest() as stop:` the first SIGINT or SIGTERM is remembered, the second ends the process.

    No wait for a worker keeps a stop waiting long: after `PATIENCE` seconds the workers are killed, which ends it, and
    those that replace them every `INSISTENCE` seconds. A save needs no worker, and may take as long as it takes.
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
        if self._asked:
            if sys.stdout.isatty():
                os.write(sys.stdout.fileno(), b"\x1b[?25h\n")  # the panel had hidden the cursor
            os._exit(128 + number)
        self._asked = True
        signal.setitimer(signal.ITIMER_REAL, PATIENCE, INSISTENCE)
        if self._breaks:
            raise KeyboardInterrupt

    def _hurry(self, number: int, frame: FrameType | None) -> None:
        for process in multiprocessing.active_children():
            if process.name.startswith("env-worker"):
                process.kill()

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._former[number] = signal.signal(number, self._handle)
        self._former[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._hurry)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._former.items():
            if number == signal.SIGALRM or not self._asked:  # else the process is ending, and a second one may yet come
                signal.signal(number, handler)
