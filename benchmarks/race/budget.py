"""Ledger of the CPU seconds that a run has used, kept on disk and counted across resumes.

A core-hour is 3,600 seconds of user and system time of a process and all its descendants. Other programs on the
machine make a run slower by the clock and leave its core-hours almost unchanged.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil

HOUR = 3600.0
WRITE_SECONDS = 5.0
"""Seconds between two lines of the ledger: what a killed race can forget."""


def family_seconds(pid: int) -> float:
    """CPU seconds of process `pid`, of its descendants, and of those of them that ended; 0 when it is gone."""
    try:
        leader = psutil.Process(pid)
        family = [leader, *leader.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0.0
    seconds = 0.0
    for process in family:
        try:
            seconds += sum(process.cpu_times()[:4])  # user, system, and both of the children waited for
        except psutil.NoSuchProcess:
            continue
    return seconds


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The JSON lines of `file`, oldest first; a line that was cut short by a kill is skipped."""
    found = []
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def append_line(file: Path, row: dict[str, Any]) -> None:
    """Add `row` to `file` on a line of its own, also where the last one was cut short."""
    torn = file.exists() and file.read_bytes()[-1:] not in (b"\n", b"")
    with file.open("a") as out:
        out.write(("\n" if torn else "") + json.dumps(row) + "\n")


class Ledger:
    """CPU and wall seconds of a run: the sums over its sessions, each a process family from its start to its end."""

    def __init__(self, file: Path) -> None:
        self._file = file
        latest: dict[int, dict[str, float]] = {}
        for line in read_lines(file):
            latest[line["session"]] = line
        self._cpu_before = sum(line["cpu"] for line in latest.values())
        self._wall_before = sum(line["wall"] for line in latest.values())
        self._session = max(latest, default=0)
        self._cpu, self._wall = 0.0, 0.0
        self._written = self._began = 0.0

    @property
    def cpu(self) -> float:
        """CPU seconds spent so far, all sessions."""
        return self._cpu_before + self._cpu

    @property
    def wall(self) -> float:
        """Wall-clock seconds so far, all sessions."""
        return self._wall_before + self._wall

    @property
    def session_wall(self) -> float:
        """Wall-clock seconds of the present session."""
        return self._wall

    def open(self) -> None:
        """Begin a session."""
        self._cpu_before, self._wall_before = self.cpu, self.wall
        self._session += 1
        self._cpu, self._wall, self._began, self._written = 0.0, 0.0, time.monotonic(), -WRITE_SECONDS

    def charge(self, cpu: float, *, last: bool = False) -> None:
        """Note that the session has used `cpu` seconds so far; less than before is ignored (a process has ended)."""
        self._cpu = max(self._cpu, cpu)
        self._wall = time.monotonic() - self._began
        if last or self._wall - self._written >= WRITE_SECONDS:
            self._written = self._wall
            row = {"session": self._session, "cpu": round(self._cpu, 2), "wall": round(self._wall, 2)}
            append_line(self._file, row)
