"""The monitor: hands every row of metrics, with the same names and values, to all views of a run.

Views are `metrics.jsonl` (the record), TensorBoard events, the terminal and, if there is one, the dashboard's page.
They never change the training; the page may also request edits, which `asked` passes on.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from atari_dqn.cli.output import say
from atari_dqn.config.live import Edit, Request, Value, for_page, from_page
from atari_dqn.config.setting import ConfigError
from atari_dqn.evaluation.episodes import Episode
from atari_dqn.monitoring.tensorboard import TensorBoard
from atari_dqn.monitoring.terminal import Terminal
from atari_dqn.monitoring.views import Film, Page, Row, View
from atari_dqn.runs.records import Journal, discard_after, line, read_rows


class Monitor:
    """All views of one run."""

    def __init__(
        self,
        run_dir: Path,
        console: Console,
        title: str,
        total_env_steps: int,
        env_steps: int,
        link: Page | None = None,
        learning_starts: int = 0,
        expected: tuple[int, int] | None = None,
        settings: Mapping[str, Any] | None = None,
        further: Sequence[View] = (),
    ) -> None:
        """Cuts the run's records back to `env_steps`, where it resumes. Raises `OSError` if they cannot be written."""
        files = [run_dir / f"{name}.jsonl" for name in ("metrics", "evaluations", "episodes")]
        for file in files:
            discard_after(file, env_steps)
        self._console, self._link = console, link
        self._tensorboard = TensorBoard(run_dir, env_steps, self.say)
        if settings:
            self._tensorboard.describe(settings)
        self._metrics, self._evaluations, self._episodes = (Journal(file, self.say) for file in files)
        self._terminal = Terminal(console, title, total_env_steps, env_steps, learning_starts, expected)
        with contextlib.suppress(ConfigError):  # a record edited by hand
            for row in read_rows(files[0]):
                self._terminal.write(row)
        self._views: list[View] = [self._tensorboard, self._terminal, *([] if link is None else [link]), *further]

    def write(self, row: Row) -> None:
        """Hand a row to every view; `metrics.jsonl` has it at once, so that a killed run keeps what it had logged."""
        self._metrics.write(line(row))
        for view in self._views:
            view.write(row)

    def keep_evaluation(self, row: Mapping[str, Any]) -> None:
        self._evaluations.write(line(row))

    def keep_clip(self, clip: Film) -> None:
        self._tensorboard.show(clip)

    def keep_episodes(self, env_step: int, seconds: float, ended: Sequence[Episode]) -> None:
        """Record every game that `ended` at `env_step`, `seconds` into the training."""
        for game in ended:
            row = {"env_step": env_step, "episode": game.episode, "env": game.env, "return": game.raw_return}
            self._episodes.write(line({**row, "length": game.length, "time": round(seconds, 3)}))

    def alarm(self, message: str) -> None:
        """Keep `message` on the screen until the next call; an empty one ends the alarm."""
        self._terminal.alarm = message

    def asked(self) -> list[Request]:
        """Edits requested on the dashboard's page since the last call; also reports the server's errors."""
        if self._link is None:
            return []
        problem = self._link.problem()
        if problem:
            self.say(f"labml: {problem}")
        return [from_page(name, value) for name, value in self._link.poll()]

    def answer(self, env_step: int, edit: Edit) -> None:
        """Say what became of an edit, on the terminal and beside its field on the dashboard's page."""
        self.say(f"env step {env_step:,}: {edit}")
        if self._link is not None:
            self._link.answer(edit.name, f"env step {env_step:,}: {'taken: ' if edit.taken else ''}{edit}")

    def show(self, values: Mapping[str, Value]) -> None:
        """Show the live values on the dashboard's page."""
        if self._link is not None:
            self._link.show(for_page(values))

    def tick(self, env_steps: int, note: str = "") -> None:
        """Keep the terminal alive between rows, at every step. `note` says what else is in progress."""
        self._terminal.tick(env_steps, note)

    def say(self, message: str) -> None:
        """Print a line: above the panel broken between words, in a log with the time of day."""
        if self._console.is_terminal:
            self._console.print(message, highlight=False)
        else:
            say(self._console, f"{time.strftime('%H:%M:%S')}  {message}")

    def close(self) -> None:
        for view in self._views:
            view.close()
        for journal in (self._metrics, self._evaluations, self._episodes):
            journal.close()
        if self._link is not None and self._link.dropped:
            self.say(f"labml: {self._link.dropped:,} points did not reach the server; metrics.jsonl has them all")
