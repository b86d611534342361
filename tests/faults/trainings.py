"""A training as a process of its own, for tests that do it harm: it is started, watched until something is so, and
nothing of it remains.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from tests.test_train import SHORT

LIMIT = 300.0
"""Seconds after which what should have happened hangs."""
ENDLESS = [*SHORT, "--run-dir", "run", "--total-env-steps", "100000000"]


class Harmed:
    """A training under way in `place`/run."""

    def __init__(self, place: Path, command: list[str]) -> None:
        self.run_dir = place / "run"
        self._said = place / "said.txt"
        with self._said.open("w") as file:
            self.process = subprocess.Popen(
                command,
                cwd=place,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )
        self._family: dict[int, psutil.Process] = {}

    @property
    def said(self) -> str:
        """All it has printed so far."""
        return self._said.read_text()

    def rows(self) -> list[dict[str, float]]:
        """The rows logged so far, without one that is only half written."""
        file = self.run_dir / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if file.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def helpers(self, words: str = "multiprocessing.spawn") -> list[psutil.Process]:
        """Its descendants with `words` in their command lines: workers, if nothing else is asked for."""
        found = []
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._family[child.pid] = child
                    if words in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def until(self, happened: Callable[[], object], seconds: float = LIMIT) -> None:
        """Wait for something that must happen while it lives."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.005)

    def signal(self, number: int, group: bool = False) -> None:
        """To the process alone, as a supervisor does, or to its whole group, as a terminal does."""
        self.helpers()
        (os.killpg if group else os.kill)(self.process.pid, number)

    def end(self, seconds: float = LIMIT, helpers: float = 30.0) -> int:
        """Its exit code, once it has ended; `helpers` seconds later they must be gone, and no shared memory left."""
        code = self.process.wait(seconds)
        _, alive = psutil.wait_procs(self._family.values(), timeout=helpers)
        assert not alive
        family = {str(pid) for pid in (self.process.pid, *self._family)}
        assert not [name for name in os.listdir("/dev/shm") if family.intersection(re.findall(r"\d+", name))]
        return code


@contextlib.contextmanager
def training(place: Path, command: list[str]) -> Iterator[Harmed]:
    """Run `command` in `place`; at the end whatever is left of it is killed."""
    harmed = Harmed(place, command)
    try:
        yield harmed
    finally:
        for process in [*harmed.helpers(""), *harmed._family.values(), harmed.process]:
            with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.send_signal(signal.SIGKILL)
        harmed.process.wait()
