"""The live panel on a terminal, and log lines elsewhere."""

import collections
import math
import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from atari_dqn.cli.format import duration
from atari_dqn.cli.output import FIRST_LINE_SECONDS, LINE_SECONDS, redraws, say
from atari_dqn.evaluation.episodes import WINDOW
from atari_dqn.monitoring.views import Row

PANEL_SECONDS = 0.5
"""Seconds between redraws of the panel"""
PACE_SECONDS = 60.0
"""Seconds over which steps/s is averaged"""
SCORE, EVALUATION = "charts/episodic_return", "eval/episodic_return"
POINTS = 4_000
"""Scores kept for the curve; beyond, every second one goes"""
BARS = " ▁▂▃▄▅▆▇█"


class Terminal:
    """A live panel on a terminal, a line every `LINE_SECONDS` elsewhere.

    `expected` are the first and the last env step at which the score may rise above that of random play.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        total_env_steps: int,
        env_steps: int,
        learning_starts: int = 0,
        expected: tuple[int, int] | None = None,
    ) -> None:
        self._console, self._title, self._total = console, title, total_env_steps
        self._learning_starts, self._expected = learning_starts, expected
        self._row: Row = {}
        """The last value of every quantity; not every row has all of them."""
        self._scores: list[tuple[float, float]] = []
        """Env step and mean score of the last 100 games"""
        self._best = {SCORE: -math.inf, EVALUATION: -math.inf}
        self._evaluated_at = 0
        self._note = ""
        self.alarm = ""
        """Shown until it is cleared"""
        self._env_steps, self._width = env_steps, console.width
        self._started = time.monotonic()
        self._pace: collections.deque[tuple[float, int]] = collections.deque()
        self._live = Live(console=console, auto_refresh=False, transient=False) if redraws(console) else None
        self._due = self._started + (0.0 if self._live else FIRST_LINE_SECONDS)
        if self._live:
            self._live.start()

    def write(self, row: Row) -> None:
        self._row = {**self._row, **row}
        new = self._best.keys() & row.keys()
        if row.get("charts/episodes", WINDOW) < WINDOW:
            new -= {SCORE}  # the first games to end are the shortest: their mean would rise without learning
        for name in new:
            self._best[name] = max(self._best[name], row[name])
        if SCORE in new:
            self._scores.append((row["env_step"], row[SCORE]))
            if len(self._scores) > POINTS:
                del self._scores[::2]
        if EVALUATION in row:
            self._evaluated_at = int(row["env_step"])

    def tick(self, env_steps: int, note: str = "") -> None:
        """Redraw if it is time; called at every step, so it must cost next to nothing otherwise."""
        now = time.monotonic()
        if self._env_steps < self._learning_starts <= env_steps:
            self._pace.clear()  # random play is many times faster than learning
        self._env_steps, self._note = env_steps, note
        starting = bool(note) and not self._pace  # takes time but no steps
        if not self._pace and not starting:
            self._pace.append((now, env_steps))
        if now < self._due:
            return
        self._due = now + (PANEL_SECONDS if self._live else LINE_SECONDS)
        if not starting:
            self._pace.append((now, env_steps))
        while len(self._pace) > 2 and now - self._pace[0][0] > PACE_SECONDS:
            self._pace.popleft()
        if self._live:
            if self._console.width < self._width:
                self._console.clear()  # it has broken the lines of the panel, which would stay behind
            self._width = self._console.width
            self._live.update(self._panel(), refresh=True)
        else:
            say(self._console, self._line())

    def close(self) -> None:
        if self._live:
            self._note = f"ran {duration(time.monotonic() - self._started)}"
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
            return f"random play until {self._learning_starts:,}"
        return self._time_to(self._total)

    def _time_to(self, env_step: int) -> str:
        pace = self.steps_per_second()
        return duration(max(0, env_step - self._env_steps) / pace) if pace else "..."

    def _facts(self) -> list[tuple[str, str]]:
        def shown(name: str, form: str) -> str:
            return format(self._row[name], form) if name in self._row else "–"

        def score(group: str) -> str:
            human = self._row.get(f"{group}/human_normalized")
            normalized = "" if human is None else f" ({human:.0%} of human)" if human > 0 else " (as random play)"
            return shown(f"{group}/episodic_return", ".2f") + normalized

        def best(name: str) -> str:
            return f"{self._best[name]:.2f}" if math.isfinite(self._best[name]) else "–"

        return [
            ("env steps", f"{self._env_steps:,} / {self._total:,}"),
            ("time left", self.eta()),
            ("env steps/s", f"{self.steps_per_second():,.0f}"),
            ("updates", shown("update", ",.0f")),
            ("episode return", score("charts")),
            ("best return", best(SCORE)),
            ("evaluation", score("eval")),
            ("best evaluation", best(EVALUATION)),
            ("evaluated", f"{self._env_steps - self._evaluated_at:,} steps ago" if EVALUATION in self._row else "–"),
            *self._expectation(),
            ("episode length", shown("charts/episodic_length", ",.0f")),
            ("epsilon", shown("settings/epsilon", ".3f")),
            ("loss", shown("losses/td_loss", ".4g")),
            ("mean Q", shown("losses/q_values", ".3f")),
            ("learning rate", shown("settings/learning_rate", ".3g")),
            ("beta", shown("settings/beta", ".3f")),
            ("replay ratio", shown("settings/replay_ratio", "g")),
            ("replay fill", shown("run/replay_fill", ".1%")),
        ]

    def _expectation(self) -> list[tuple[str, str]]:
        """When the score should rise above that of random play, by the pace of learning once it is known."""
        if self._expected is None or self._env_steps >= self._expected[1]:
            return []
        when = "..."
        if self._env_steps >= self._learning_starts:
            when = f"about {' to '.join(dict.fromkeys(map(self._time_to, self._expected)))}"
        return [("above random play", when)]

    def _panel(self) -> Panel:
        width, height = self._console.size
        columns = min(4, max(1, width // 40))
        grid = Table.grid(padding=(0, 2), expand=True)
        for _ in range(columns):
            grid.add_column(style="dim", no_wrap=True)
            grid.add_column(justify="right", no_wrap=True)
        facts = self._facts()
        lines = -(-len(facts) // columns)
        for first in range(lines):
            grid.add_row(*(cell for fact in facts[first::lines] for cell in fact))
        whole = Table.grid(expand=True)
        whole.add_row(grid)
        whole.add_row(ProgressBar(total=self._total, completed=self._env_steps))
        rows = min(10, (height - lines - 4) // 3)
        if rows > 0 and len(self._scores) > 1:
            last, scores = self._scores[-1][0], [score for _, score in self._scores]
            legend = (
                f"episode return, mean of 100 games: {min(scores):.2f} to {max(scores):.2f} in {last:,.0f} env steps"
            )
            whole.add_row(Text(legend, style="dim", no_wrap=True))
            whole.add_row(Text(curve(self._scores, width - 6, rows), style="cyan"))
        seconds = time.monotonic() - self._started
        note = self.alarm or self._note or f"running {duration(seconds)}, Ctrl-C saves and stops"
        # With room for the ^C that a terminal shows, which would otherwise leave a line of the panel behind.
        return Panel(whole, title=self._title, subtitle=note, width=width - 2)

    def _line(self) -> str:
        facts = [f"{name} {value}" for name, value in self._facts() if value not in ("–", "...")]
        return "  ".join([time.strftime("%H:%M:%S"), *(text for text in (self.alarm, self._note) if text), *facts])


def curve(points: Sequence[tuple[float, float]], width: int, rows: int) -> str:
    """Bars of the mean score in `width` equal parts of the time from env step 0 to the last of `points`."""
    parts: list[list[float]] = [[] for _ in range(width)]
    for env_step, score in points:
        parts[min(width - 1, int(width * env_step / max(1, points[-1][0])))].append(score)
    low, high = min(score for _, score in points), max(score for _, score in points)
    levels, level = [], 0
    for part in parts:
        if part:
            share = (sum(part) / len(part) - low) / (high - low or 1.0)
            level = 1 + round(share * (8 * rows - 1))
        levels.append(level)
    lines = ["".join(BARS[min(8, max(0, level - 8 * row))] for level in levels) for row in reversed(range(rows))]
    return "\n".join(lines)
