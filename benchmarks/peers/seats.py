"""The benchmark's side of the turns: starts a contestant, asks it for turns, and samples its memory.

Contestants answer in JSON lines (see `turns.py`). Everything else they print goes to a log, whose last lines are
reported if one fails.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.peers.memory import Memory, family_memory
from benchmarks.peers.work import Work

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 1.0
"""Seconds between calls of the watch function."""
LOOK_SECONDS = 10.0
"""Seconds between samples of a contestant's memory, for which the kernel walks all its pages."""
PATIENCE = 300.0
"""Seconds without an answer, after the end of its turn, before a contestant fails."""

Watch = Callable[[dict[str, Any]], None]
"""Called about once a second with the latest progress of a contestant that is warming up."""


class ContestantFailed(Exception):
    """It ended, gave an unreadable answer, or stopped answering; the message has the last lines of its log."""


@dataclasses.dataclass(frozen=True)
class Turn:
    env_steps: int
    updates: int
    wall: float
    """Duration in seconds."""


class Seat:
    """A contestant in a process of its own. Leaving the context kills it and its workers."""

    def __init__(self, command: Sequence[str], work: Work, log: Path, arguments: Sequence[str] = ()) -> None:
        self.peak = Memory(0, 0)
        self.versions: dict[str, str] = {}
        self._look_due = 0.0
        self._log = log
        self._lines: queue.Queue[str] = queue.Queue()
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [*command, json.dumps(dataclasses.asdict(work)), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the benchmark only, which then kills them all
                # For the workers; learners set their own number of threads.
                env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONUNBUFFERED": "1"},
            )
        threading.Thread(target=self._read, daemon=True).start()

    def prepare(self, watch: Watch) -> None:
        """Wait until it has warmed up."""
        message: dict[str, Any] = {}
        while not message.get("ready"):
            message = self._answer(PATIENCE, watch)
            watch(message)
        self.versions = message["versions"] | {"python": message["python"]}

    def turn(self, seconds: float, watch: Watch) -> Turn:
        """Let it train for `seconds`."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"seconds": seconds}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise self._failure("it has ended") from None
        return Turn(**self._answer(seconds + PATIENCE, watch))

    def _answer(self, patience: float, watch: Watch) -> dict[str, Any]:
        deadline = time.monotonic() + patience
        while True:
            if time.monotonic() >= self._look_due:
                self._look()
            # Checked before the queue, so that a last answer still counts.
            code = self._process.poll()
            try:
                line = self._lines.get(timeout=POLL_SECONDS)
            except queue.Empty:
                if code is not None:
                    raise self._failure(f"it ended with exit code {code}") from None
                if time.monotonic() > deadline:
                    raise self._failure(f"it did not answer for {patience:.0f} s") from None
                watch({})
                continue
            try:
                message = json.loads(line)
            except json.JSONDecodeError:
                raise self._failure(f"its answer is not JSON: {line.strip()[:200]!r}") from None
            self._look()
            return message

    def _look(self) -> None:
        self.peak = self.peak.peak(family_memory(self._process.pid))
        self._look_due = time.monotonic() + LOOK_SECONDS

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)

    def _failure(self, what: str) -> ContestantFailed:
        lines = [line.strip() for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return ContestantFailed("\n".join([what, *(f"  {line[:300]}" for line in lines[-8:])]))

    def __enter__(self) -> Seat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Kill its whole session: the workers of some peers outlive their learner.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
