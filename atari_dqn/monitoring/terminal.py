"""The live panel on a terminal, and log lines elsewhere."""

import collections
import math
import time

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from atari_dqn.cli.format import duration
from atari_dqn.cli.output import FIRST_LINE_SECONDS, LINE_SECONDS, say
from atari_dqn.monitoring.views import Row

PANEL_SECONDS = 0.5
"""Seconds between redraws of the panel"""
PACE_SECONDS = 60.0
"""Seconds over which steps/s is averaged"""
EVALUATION = "eval/episodic_return"


class Terminal:
    """A live panel on a terminal, a line every `LINE_SECONDS` elsewhere."""

    def __init__(
        self, console: Console, title: str, total_env_steps: int, env_steps: int, learning_starts: int = 0
    ) -> None:
        self._console, self._title, self._total = console, title, total_env_steps
        self._learning_starts = learning_starts
        self._row: Row = {}
        """The last value of every quantity; not every row has all of them."""
        self._evaluated_at, self._best = 0, -math.inf
        self._note = ""
        self.alarm = ""
        """Shown until it is cleared"""
        self._env_steps = env_steps
        self._started = time.monotonic()
        self._pace: collections.deque[tuple[float, int]] = collections.deque()
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        self._due = self._started + (PANEL_SECONDS if self._live else FIRST_LINE_SECONDS)
        if self._live:
            self._live.start()

    def write(self, row: Row) -> None:
        self._row = {**self._row, **row}
        if EVALUATION in row:
            self._evaluated_at, self._best = int(row["env_step"]), max(self._best, row[EVALUATION])

    def tick(self, env_steps: int, note: str = "") -> None:
        """Redraw if it is time; called at every step, so it must cost next to nothing otherwise."""
        now = time.monotonic()
        if self._env_steps < self._learning_starts <= env_steps:
            self._pace.clear()  # random play is many times faster than learning
        self._env_steps, self._note = env_steps, note
        if not self._pace:
            self._pace.append((now, env_steps))  # only now: starting the workers takes time but no steps
        if now < self._due:
            return
        self._due = now + (PANEL_SECONDS if self._live else LINE_SECONDS)
        self._pace.append((now, env_steps))
        while len(self._pace) > 2 and now - self._pace[0][0] > PACE_SECONDS:
            self._pace.popleft()
        if self._live:
            self._live.update(self._panel(), refresh=True)
        else:
            say(self._console, self._line())

    def close(self) -> None:
        if self._live:
            self._live.update(self._panel(), refresh=True)
            self._live.stop()

    def steps_per_second(self) -> float:
        """Env steps per second over the last `PACE_SECONDS`."""
        if not self._pace:
            return 0.0
        (then, before), (now, after) = self._pace[0], self._pace[-1]
        return (after - before) / (now - then) if now > then else 0.0

    def eta(self) -> str:
        if self._env_steps < self._learning_starts < self._total:
            return f"from {self._learning_starts:,} on"
        pace = self.steps_per_second()
        return duration(max(0, self._total - self._env_steps) / pace) if pace else "..."

    def _facts(self) -> list[tuple[str, str]]:
        def shown(name: str, form: str) -> str:
            return format(self._row[name], form) if name in self._row else "–"

        def score(group: str) -> str:
            human = shown(f"{group}/human_normalized", ".2f")
            return shown(f"{group}/episodic_return", ".2f") + ("" if human == "–" else f" (human {human})")

        return [
            ("env steps", f"{self._env_steps:,} / {self._total:,}"),
            ("updates", shown("update", ",.0f")),
            ("steps/s", f"{self.steps_per_second():,.0f}"),
            ("ETA", self.eta()),
            ("episode return", score("charts")),
            ("episode length", shown("charts/episodic_length", ",.0f")),
            ("epsilon", shown("charts/epsilon", ".3f")),
            ("beta", shown("charts/beta", ".3f")),
            ("learning rate", shown("charts/learning_rate", ".3g")),
            ("loss", shown("losses/td_loss", ".4g")),
            ("mean Q", shown("losses/q_values", ".3f")),
            ("replay ratio", shown("charts/replay_ratio", "g")),
            ("replay fill", shown("charts/replay_fill", ".1%")),
            ("evaluation", score("eval")),
            ("evaluated", f"{self._env_steps - self._evaluated_at:,} steps ago" if EVALUATION in self._row else "–"),
            ("best of them", f"{self._best:.2f}" if EVALUATION in self._row else "–"),
        ]

    def _panel(self) -> Panel:
        grid = Table.grid(padding=(0, 2), expand=True)
        for _ in range(2):
            grid.add_column(style="dim")
            grid.add_column(justify="right")
        facts = self._facts()
        for (left, left_value), (right, right_value) in zip(facts[::2], facts[1::2], strict=True):
            grid.add_row(left, left_value, right, right_value)
        whole = Table.grid(expand=True)
        whole.add_row(grid)
        whole.add_row(ProgressBar(total=self._total, completed=self._env_steps))
        note = self.alarm or self._note or duration(time.monotonic() - self._started)
        return Panel(whole, title=self._title, subtitle=note, width=80)

    def _line(self) -> str:
        facts = [f"{name} {value}" for name, value in self._facts() if value != "–"]
        return "  ".join([text for text in (self.alarm, self._note) if text] + facts)
