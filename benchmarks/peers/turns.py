"""A contestant's side of the benchmark: the work flows in as one JSON argument, turns as JSON lines on stdin; counts
flow out as JSON lines on the stdout that the process was started with.

    with Turns("stable-baselines3") as turns:
        ...                                # build a trainer for turns.work
        while True:
            ...                            # one iteration
            turns.tick(env_steps, updates)

`tick` returns at once while the contestant warms up and while its turn lasts. Otherwise it blocks, so that the
contestant and its workers, which wait for it, leave the machine to the others. When stdin ends, the process does.
Nothing but the standard library is imported here, for every peer's environment runs it.
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
    """None where no distribution has this name: cv2 may come from another one."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


class Turns:
    """The turns of this process; `package` is the one whose version counts. See the module's first lines."""

    def __init__(self, package: str, argv: Sequence[str] | None = None) -> None:
        self.work = Work(**json.loads((sys.argv[1:] if argv is None else argv)[0]))
        self._package = package
        # What libraries print must not come between the counts: it joins the errors.
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._start: tuple[float, int, int] | None = None
        """of the turn under way: time, env steps, updates; None while warming up"""
        self._end = 0.0
        self._progress_due = 0.0

    def tick(self, env_steps: int, updates: int) -> None:
        """To be called between two iterations, with the counts since the process began."""
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
        # Python would wait for workers here, some of which never end by themselves.
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
