"""A contestant's side of the turns: reads the work from its first argument and turns from stdin, and answers on stdout.

All of them are JSON; a contestant uses this module like this:

    with Turns("stable-baselines3") as turns:
        ...                                # build a trainer for turns.work
        while True:
            ...                            # one iteration
            turns.tick(env_steps, updates)

`tick` returns immediately while the contestant warms up and during its turn. Otherwise it blocks, so that the
contestant and its workers, which wait for it, use no CPU. When stdin is closed, the process ends. Only the standard
library is imported here, because every peer's environment runs it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import metadata
from types import TracebackType
from typing import Any, NoReturn

from benchmarks.peers.work import Work

PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "opencv-python")
PROGRESS_SECONDS = 2.0


def _version(name: str) -> str | None:
    """Version of a distribution; None if none has this name."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


class Turns:
    """The turns of this process; the version of `package` is reported. See the example at the top of this module."""

    def __init__(self, package: str, argv: Sequence[str] | None = None) -> None:
        self.work = Work(**json.loads((sys.argv[1:] if argv is None else argv)[0]))
        self._package = package
        # What libraries print must not mix with the answers: it goes to stderr.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._start: tuple[float, int, int] | None = None
        """Time, env steps and updates at the start of the current turn; None while warming up."""
        self._end = 0.0
        self._progress_due = 0.0

    def tick(self, env_steps: int, updates: int) -> None:
        """Call this between iterations, with the counts since the process started."""
        now = time.perf_counter()
        if self._start is None:
            if env_steps < self.work.learning_starts or updates < self.work.warm_up_updates:
                if now >= self._progress_due:
                    self._progress_due = now + PROGRESS_SECONDS
                    self._say(env_steps=env_steps, updates=updates)
                return
            versions = {name: _version(name) for name in (*PACKAGES, self._package)}
            self._say(ready=True, python=platform.python_version(), versions=versions)
        elif now < self._end:
            return
        else:
            start, env_steps_before, updates_before = self._start
            self._say(env_steps=env_steps - env_steps_before, updates=updates - updates_before, wall=now - start)
        line = sys.stdin.readline()
        if not line:
            self._exit(0)
        start = time.perf_counter()
        self._start, self._end = (start, env_steps, updates), start + json.loads(line)["seconds"]

    def _say(self, **message: Any) -> None:
        print(json.dumps(message), file=self._out, flush=True)

    def _exit(self, code: int) -> NoReturn:
        # Otherwise Python waits for workers, some of which never end by themselves.
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(code)

    def __enter__(self) -> Turns:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> NoReturn:
        traceback.print_exception(kind, error, trace)
        sys.stderr.flush()
        self._exit(1)
