"""Metrics out: one row of scalars in, and the same names and values to every view of the run.

Views: `metrics.jsonl` (the record), TensorBoard events, the terminal, and the labml dashboard, whose client lives in a
side process. A view is anything with `write(row)` and `close()`. Views read the training and never change it; the
dashboard's page also asks for edits, which `asked` hands to the trainer.
"""

from __future__ import annotations

import collections
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table

from atari_dqn.config.live import Request, Value, for_page, from_page
from atari_dqn.evaluation.episodes import Episode
from atari_dqn.labml.link import LabmlLink
from atari_dqn.runs.records import Journal, cut_back, line

if TYPE_CHECKING:
    from atari_dqn.render.clips import Clip

Row = dict[str, float]

FIRST_LINE_SECONDS, LINE_SECONDS = 5.0, 10.0
"""Seconds to the first line where the output is no terminal, and between lines."""
PANEL_SECONDS = 0.5
"""Seconds between redraws of the panel."""
PACE_SECONDS = 60.0
"""Seconds over which steps/s is taken for the terminal's ETA."""


class View(Protocol):
    def write(self, row: Row) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """Appends rows to `metrics.jsonl`, each at once, so that a killed run keeps what it had logged."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def write(self, row: Row) -> None:
        self._journal.write(line(row))

    def close(self) -> None:
        self._journal.close()


class TensorBoard:
    """Writes an event file that `tensorboard --logdir runs` shows, by env step.

    Not by tensorboard's own writer: its thread dies of a full disk, and leaves a torn event that hides all later ones.
    """

    def __init__(self, directory: Path, env_steps: int, say: Callable[[str], None]) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog  # takes a while to import
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time_ns() / 1e9:010.6f}.{socket.gethostname()}.{os.getpid()}"
        self._journal = Journal(directory / name, say)
        self._records = RecordWriter(self._journal)
        self._put(file_version="brain.Event:2")
        # A resume hides what was logged past its checkpoint.
        self._put(step=env_steps + 1, session_log=SessionLog(status=SessionLog.START))

    def write(self, row: Row) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in row.items() if "/" in name]
        self._put(step=int(row["env_step"]), summary=Summary(value=values))

    def show(self, clip: Clip) -> None:
        """Among the images, where an animated GIF plays."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        height, width = clip.gif_size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=clip.gif)
        self._put(step=clip.env_step, summary=Summary(value=[Summary.Value(tag="clips/game", image=image)]))

    def close(self) -> None:
        self._journal.close()

    def _put(self, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        self._records.write(Event(wall_time=time.time(), **content).SerializeToString())


class Terminal:
    """A live panel on a terminal, a line every `LINE_SECONDS` elsewhere."""

    def __init__(
        self, console: Console, title: str, total_env_steps: int, env_steps: int, learning_starts: int = 0
    ) -> None:
        self._console, self._title, self._total = console, title, total_env_steps
        self._learning_starts = learning_starts
        self._row: Row = {}
        self._note = ""
        self.alarm = ""
        """what the user must know until it is over"""
        self._env_steps = env_steps
        self._started = time.monotonic()
        self._pace: collections.deque[tuple[float, int]] = collections.deque()
        self._live = Live(console=console, auto_refresh=False, transient=False) if console.is_terminal else None
        self._due = self._started + (PANEL_SECONDS if self._live else FIRST_LINE_SECONDS)
        if self._live:
            self._live.start()

    def write(self, row: Row) -> None:
        self._row = row

    def tick(self, env_steps: int, note: str = "") -> None:
        """Redraw when it is time; called at every step, so it must cost nothing when it is not."""
        now = time.monotonic()
        if self._env_steps < self._learning_starts <= env_steps:
            self._pace.clear()  # random play is many times quicker than what follows
        self._env_steps, self._note = env_steps, note
        if not self._pace:
            self._pace.append((now, env_steps))  # only now: starting the workers is no step
        if now < self._due:
            return
        self._due = now + (PANEL_SECONDS if self._live else LINE_SECONDS)
        self._pace.append((now, env_steps))
        while len(self._pace) > 2 and now - self._pace[0][0] > PACE_SECONDS:
            self._pace.popleft()
        if self._live:
            self._live.update(self._panel(), refresh=True)
        else:
            self._console.print(self._line(), highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._live:
            self._live.update(self._panel(), refresh=True)
            self._live.stop()

    def steps_per_second(self) -> float:
        """Env steps a second over the last `PACE_SECONDS`."""
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
        return Panel(whole, title=self._title, subtitle=note, width=76)

    def _line(self) -> str:
        facts = [f"{name} {value}" for name, value in self._facts() if value != "–"]
        return "  ".join([text for text in (self.alarm, self._note) if text] + facts)


class Monitor:
    """All views of one run."""

    def __init__(
        self,
        run_dir: Path,
        console: Console,
        title: str,
        total_env_steps: int,
        env_steps: int,
        link: LabmlLink | None = None,
        learning_starts: int = 0,
    ) -> None:
        """Raises `OSError` when `run_dir` cannot be written."""
        metrics, evaluations, episodes = (run_dir / f"{name}.jsonl" for name in ("metrics", "evaluations", "episodes"))
        for file in (metrics, evaluations, episodes):
            cut_back(file, env_steps)
        self._console = console
        self._tensorboard = TensorBoard(run_dir, env_steps, self.say)
        self._views: list[View] = [JsonLines(Journal(metrics, self.say)), self._tensorboard]
        self._evaluations, self._episodes = Journal(evaluations, self.say), Journal(episodes, self.say)
        self._terminal = Terminal(console, title, total_env_steps, env_steps, learning_starts)
        self._views.append(self._terminal)
        self._link = link
        if link is not None:
            self._views.append(link)

    def write(self, row: Row) -> None:
        """Hand a row to every view. It has `env_step`, `update` and `time` (seconds), and scalars named `a/b`."""
        for view in self._views:
            view.write(row)

    def keep_evaluation(self, row: Mapping[str, Any]) -> None:
        """A line of `evaluations.jsonl`."""
        self._evaluations.write(line(row))

    def keep_clip(self, clip: Clip) -> None:
        """Show a film of the training in TensorBoard."""
        self._tensorboard.show(clip)

    def keep_episodes(self, env_step: int, seconds: float, ended: Sequence[Episode]) -> None:
        """A line of `episodes.jsonl` for each game that `ended` at `env_step`, `seconds` into the training."""
        for game in ended:
            row = {"env_step": env_step, "episode": game.episode, "env": game.env, "return": game.raw_return}
            self._episodes.write(line({**row, "length": game.length, "time": round(seconds, 3)}))

    def alarm(self, message: str) -> None:
        """Show `message` at all times, until it is called again; an empty one ends the alarm."""
        self._terminal.alarm = message

    def asked(self) -> list[Request]:
        """Edits asked for on the dashboard's page since the last call; also tells the user of the server's troubles."""
        if self._link is None:
            return []
        problem = self._link.problem()
        if problem:
            self.say(f"labml: {problem}")
        return [from_page(name, value) for name, value in self._link.poll()]

    def show(self, values: Mapping[str, Value]) -> None:
        """Let the dashboard's page show the present values of the live hyperparameters."""
        if self._link is not None:
            self._link.show(for_page(values))

    def tick(self, env_steps: int, note: str = "") -> None:
        """Called at every step: keeps the terminal alive between rows. `note` says what else is under way."""
        self._terminal.tick(env_steps, note)

    def say(self, message: str) -> None:
        """One line for the user, above the panel."""
        self._console.print(message, highlight=False, soft_wrap=True)

    def close(self) -> None:
        for view in self._views:
            view.close()
        self._evaluations.close()
        self._episodes.close()
        if self._link is not None and self._link.dropped:
            self.say(f"labml: {self._link.dropped:,} points never reached the server; metrics.jsonl has them all")


def duration(seconds: float) -> str:
    """`3725` -> `1h02m`; `59` -> `59s`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    if seconds < 86_400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"
    return f"{seconds // 86_400}d{seconds % 86_400 // 3600:02}h"
