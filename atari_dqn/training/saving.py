"""Saving a run: checkpoints when they are due, and an alarm while they fail."""

from __future__ import annotations

import contextlib
import errno
import time

from atari_dqn.monitoring.monitor import Monitor
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.training.snapshot import save
from atari_dqn.training.trainer import Trainer

ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space on the disk"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "check the permissions"),
}
"""What to do about a save that failed with that error; "of" a directory follows."""


class NotSaved(Exception):
    """The state at the end of a run could not be saved; the message says what is left and what to do."""


class Saver:
    """Writes checkpoints of `trainer` and reports on them."""

    def __init__(self, trainer: Trainer, store: CheckpointStore, monitor: Monitor) -> None:
        self._trainer, self._store, self._monitor = trainer, store, monitor
        self.failed = 0
        """Number of saves that have failed in a row"""
        self._saved: tuple[int, ...] = ()
        """Identifies the state that was saved last"""
        self._tried = time.monotonic()

    def overdue(self) -> bool:
        """Whether `--checkpoint-minutes` have passed since the last attempt."""
        minutes = self._trainer.config.run.checkpoint_minutes
        return bool(minutes) and time.monotonic() - self._tried > 60 * minutes

    def save(self, edit_lines: int, *, report: bool = True) -> str:
        """Save, unless this very state is saved already, and say how long it took; or sound the alarm.

        Args:
            edit_lines: Number of lines in the edit log by now.
            report: Whether to print the problem, if there is one.

        Returns:
            The problem in one line; empty when there is none.
        """
        trainer, monitor = self._trainer, self._monitor
        state = trainer.replay.newest, trainer.learner.updates, edit_lines
        self._tried = began = time.monotonic()
        if state == self._saved:
            return ""
        monitor.tick(trainer.env_steps, "saving")
        try:
            path = save(trainer, self._store, edit_lines)
            size = sum(file.stat().st_size for file in path.iterdir())
        except OSError as error:
            self.failed += 1
            problem, alarm = self._describe(error)
            monitor.alarm(alarm)
            if report:
                monitor.say(problem)
            return problem
        self._saved, self.failed = state, 0
        monitor.alarm("")
        monitor.say(f"env step {trainer.env_steps:,} saved: {size / 1e6:,.1f} MB in {time.monotonic() - began:.2f} s")
        return ""

    def _describe(self, error: OSError) -> tuple[str, str]:
        """The problem in one line, and the short alarm."""
        left = None
        with contextlib.suppress(OSError):
            left, _ = self._store.newest_valid()
        problem = (
            f"NOT SAVED at env step {self._trainer.env_steps:,}: {error.strerror or error};"
            f" {f'the last valid checkpoint is {left}' if left else 'there is no valid checkpoint'};"
            f" {ADVICE.get(error.errno or 0, 'check the disk')} of {self._store.directory}"
        )
        return problem, f"NOT SAVED since env step {left.name if left else 0}"
