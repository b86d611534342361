"""What a sweep shows while it runs: a table of its members on a terminal, a line every minute elsewhere."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from atari_dqn.cli.format import count, duration, score
from atari_dqn.cli.output import say
from atari_dqn.sweeps.members import NO_PROGRESS, Member, Progress

REDRAW_SECONDS = 0.5
"""Seconds between redraws on a terminal"""
FIRST_LINE_SECONDS, LINE_SECONDS = 10.0, 60.0
"""Seconds to the first line, and between lines, where the output is not a terminal"""
STATES = ("running", "saving", "failed", "stopped", "waiting", "stopped early", "done")
"""All states of a member, those that a person wants to see first at the beginning."""
ENDED = ("done", "stopped early")


@dataclasses.dataclass
class Line:
    """What is known of one member."""

    label: str
    total: int
    """Env steps of the whole run"""
    state: str = "waiting"
    progress: Progress = NO_PROGRESS
    where: str = ""
    """Name of the machine it runs on; empty for this one"""

    @property
    def left(self) -> int:
        """Env steps that are still to be made."""
        return 0 if self.state in ENDED else max(0, self.total - self.progress.env_step)


class Board:
    """`with Board(console, members) as board: ... board.lines[name].state = "running"; board.show()`."""

    def __init__(self, console: Console, members: Iterable[Member]) -> None:
        self._console = console
        self.lines = {member.name: line_of(member) for member in members}
        self._live = Live(self, console=console, auto_refresh=False) if console.is_terminal else None
        self._due = time.monotonic() + (0 if self._live else FIRST_LINE_SECONDS)

    def say(self, text: str) -> None:
        """Print a line, above the table if there is one."""
        say(self._console, text)

    def show(self) -> None:
        """Show how things stand, if it is time; to be called often."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + (REDRAW_SECONDS if self._live else LINE_SECONDS)
        if self._live:
            self._live.update(self, refresh=True)
        else:
            self.say(self.summary())

    def summary(self) -> str:
        """One line: how many members are in which state, how far they are, and how long the rest takes."""
        states = [line.state for line in self.lines.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in reversed(STATES) if state in states)
        total = sum(line.total for line in self.lines.values())
        left = sum(line.left for line in self.lines.values())
        rate = sum(line.progress.steps_per_second for line in self.lines.values() if line.state == "running")
        pace = f", {count(rate)} a second, {duration(left / rate)} left" if rate else ""
        return f"{counts or 'no run yet'}; {total - left:,} of {total:,} env steps{pace}"

    def __rich__(self) -> Table:
        table = Table(box=box.SIMPLE_HEAD, caption=self.summary(), caption_justify="left", expand=False)
        elsewhere = any(line.where for line in self.lines.values())
        table.add_column("run", overflow="ellipsis", no_wrap=True)
        table.add_column("state", no_wrap=True)
        for name in ("env steps", "score", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        if elsewhere:
            table.add_column("where", no_wrap=True)
        ordered = sorted(self.lines.values(), key=lambda line: STATES.index(line.state))
        shown = max(3, self._console.height - 7)
        for line in ordered[:shown]:
            table.add_row(*_cells(line)[: 6 if elsewhere else 5])
        if len(ordered) > shown:
            table.add_row(f"and {len(ordered) - shown} more")
        return table

    def __enter__(self) -> Board:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()


def line_of(member: Member) -> Line:
    return Line(member.label, member.config.run.total_env_steps)


def _cells(line: Line) -> list[str]:
    progress = line.progress
    running = line.state == "running" and progress.steps_per_second
    return [
        line.label,
        line.state,
        f"{progress.env_step:,} ({progress.env_step / line.total:.0%})",
        "–" if progress.score is None else score(progress.score),
        duration(line.left / progress.steps_per_second) if running else "",
        line.where,
    ]
