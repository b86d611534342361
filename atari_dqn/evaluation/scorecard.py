"""Evaluations of one network under several conditions flow in; how far they are, and then a table, flow out."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich import box
from rich.console import Group
from rich.table import Table

from atari_dqn.cli.format import duration, short
from atari_dqn.envs.ids import is_atari
from atari_dqn.envs.protocol import Protocol
from atari_dqn.evaluation.evaluation import Evaluation, Progress
from atari_dqn.evaluation.intervals import RESAMPLES


class CardProgress:
    """How far a card of `cells` evaluations is, as a line for the user. Starts its clock when it is made."""

    def __init__(self, cells: int) -> None:
        self._cells, self._done, self._ticks_before, self._ticks = cells, 0, 0, 0
        self._started = time.monotonic()

    def next(self) -> None:
        """The present evaluation is over."""
        self._done += 1
        self._ticks_before, self._ticks = self._ticks_before + self._ticks, 0

    def line(self, progress: Progress) -> str:
        self._ticks = progress.ticks
        text = f"{self._done + 1} of {self._cells}: " if self._cells > 1 else ""
        text += f"{progress.games} of {progress.episodes} games  {progress.ticks:,} env steps in each env"
        if progress.mean is not None:
            text += f"  mean score so far {progress.mean:.2f}"
        left = self.ticks_left(progress)
        if left is not None:
            pace = (self._ticks_before + progress.ticks) / (time.monotonic() - self._started)
            text += f"  ETA {'' if progress.games or self._done else 'at most '}{duration(left / pace)}"
        return text

    def ticks_left(self, progress: Progress) -> float | None:
        """Of the whole card: those to come are taken to last as long as those so far, on average.

        So is the present one before any of its games is over.
        """
        here = progress.ticks_left
        if self._done and not progress.games:
            here = max(0.0, self._ticks_before / self._done - progress.ticks)
        if here is None:
            return None
        so_far = self._ticks_before + progress.ticks + here
        return here + (self._cells - self._done - 1) * so_far / (self._done + 1)


def scorecard(what: str, results: Sequence[Evaluation], trained: Protocol, num_actions: int) -> Group:
    """A table with a row for each evaluation, and what its words mean.

    `trained` is the protocol of the training, whose `num_actions` the network keeps.
    """
    first = results[0]
    atari, normalised = is_atari(first.env_id), first.human_normalized is not None
    table = Table(title=f"{what}: {len(first.returns)} games a row", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("epsilon\nprotocol" if atari else "epsilon", style="bold")
    for name in ("mean\n95% interval", "IQM\n95% interval", "median\nrange"):
        table.add_column(name, justify="right")
    if normalised:
        table.add_column("human", justify="right")
    table.add_column("env steps\ncut", justify="right")
    for result in results:
        table.add_row(
            f"{result.epsilon:g}\n{result.protocol.name if atari else ''}",
            _over(short(result.mean), result.ci95),
            _over(short(result.iqm), result.iqm_ci95),
            _over(short(result.median), (result.returns.min(), result.returns.max())),
            *([f"{result.human_normalized:.2f}"] if normalised else []),
            f"{result.lengths.mean():,.0f}\n{result.cut} cut",
        )
    notes = [f"Intervals: {RESAMPLES:,} bootstrap samples. IQM: mean of the middle half of the games."]
    if normalised:
        notes.append("Human: the mean human-normalised, 0 is random play, 1 a human.")
    limit = f"limit of {first.protocol.max_episode_frames:,} frames" if atari else "time limit"
    notes.append(f"Env steps: mean length of a game; cut: games ended by the {limit}.")
    if any(result.protocol.name != trained.name for result in results):
        which = f"all {num_actions}" if trained.full_action_space else f"the game's minimal set of {num_actions}"
        notes.append(f"Trained under {trained.name}, the network keeps {which} actions under the other protocol.")
    return Group(table, *notes)


def _over(above: str, below: tuple[float, float]) -> str:
    low, high = below
    return f"{above}\n{short(low)} to {short(high)}"
