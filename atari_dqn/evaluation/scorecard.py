"""Scorecard of one network: evaluations under several protocols and epsilons, with their progress, as one table.

torch and gymnasium are imported when the games begin, so that commands can take their defaults from here and still
answer bad input at once.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from typing import Protocol as TypingProtocol

from rich import box
from rich.console import Console, Group
from rich.table import Table

from atari_dqn.cli.command import CommandFailed
from atari_dqn.cli.format import duration, score
from atari_dqn.cli.output import StatusLine
from atari_dqn.config.schema import TrainConfig
from atari_dqn.envs.ids import is_atari
from atari_dqn.envs.protocol import PROTOCOLS, EnvSpec, Protocol, protocol_for
from atari_dqn.evaluation.intervals import RESAMPLES
from atari_dqn.evaluation.result import Evaluation, append_evaluation

if TYPE_CHECKING:
    import torch

    from atari_dqn.evaluation.evaluation import Progress

PROTOCOL_NAMES: tuple[Literal["nature", "machado"], ...] = ("nature", "machado")
"""Names of the protocols that a scorecard of an Atari game covers by default."""
EPSILONS = (0.0, 0.01, 0.05)
"""Probabilities of a random action that a scorecard covers by default."""
NUM_WORKERS = 8
"""Default number of worker processes, with one env each."""


class Trained(TypingProtocol):
    """A trained network as a scorecard needs it; `policy.trained.TrainedNetwork` is one."""

    @property
    def config(self) -> TrainConfig: ...
    @property
    def spec(self) -> EnvSpec: ...
    @property
    def network(self) -> torch.nn.Module: ...
    @property
    def env_step(self) -> int: ...


def evaluate_cells(
    trained: Trained,
    run_dir: Path,
    console: Console,
    *,
    episodes: int,
    protocol_names: Sequence[str] = PROTOCOL_NAMES,
    epsilons: Sequence[float] = EPSILONS,
    num_workers: int = NUM_WORKERS,
    seed: int = 0,
) -> None:
    """Evaluate a network under every protocol with every epsilon, and print a scorecard.

    Each result is appended to `run_dir`/evaluations.jsonl as soon as its games are over.

    Args:
        trained: the network, its env and its settings; the games are played on the network's device.
        run_dir: directory of evaluations.jsonl.
        console: where progress, results and the scorecard are printed.
        episodes: whole games of each cell.
        protocol_names: keys of `PROTOCOLS`, or "trained". Only Atari games have protocols; other envs ignore the names.
        epsilons: probabilities of a random action.
        num_workers: worker processes, one env each.
        seed: of games and random actions.

    Raises:
        CommandFailed: a worker failed, or evaluations.jsonl cannot be written.
    """
    from atari_dqn.evaluation.evaluation import evaluate
    from atari_dqn.workers.pool import WorkerError

    spec, trained_under = trained.spec, trained.config.env.protocol
    names = protocol_names if spec.is_atari else (trained_under,)
    protocols = {protocol.name: protocol for protocol in (protocol_for(name, trained_under) for name in names)}
    cells = list(itertools.product(protocols.values(), dict.fromkeys(epsilons)))
    file = run_dir / "evaluations.jsonl"
    what = f"{spec.env_id}, the network of env step {trained.env_step:,}"
    times = f"{len(cells)} times " if len(cells) > 1 else ""
    console.print(f"{what}: {times}{episodes} games", highlight=False, soft_wrap=True)
    results: list[Evaluation] = []
    with StatusLine(console, "starting the workers") as status:
        card = CardProgress(len(cells))
        for protocol, epsilon in cells:
            try:
                result = evaluate(
                    trained.network,
                    spec,
                    protocol,
                    episodes=episodes,
                    num_envs=num_workers,
                    num_workers=num_workers,
                    epsilon=epsilon,
                    seed=seed,
                    device=next(trained.network.parameters()).device,
                    on_progress=lambda progress: status.update(card.line(progress)),
                )
            except WorkerError as error:
                raise CommandFailed(str(error)) from None
            try:
                append_evaluation(run_dir, trained.env_step, result)
            except OSError as error:
                raise CommandFailed(f"cannot write {file}: {error.strerror}") from None
            card.next()
            results.append(result)
            if len(cells) > 1:
                console.print(result.summary(), highlight=False, soft_wrap=True)
    console.print(scorecard(what, results, PROTOCOLS[trained_under], spec.num_actions))
    console.print(f"added to {file}", highlight=False, soft_wrap=True)


class CardProgress:
    """Progress of a scorecard with `cells` evaluations, as a line for the user. The clock starts when it is made."""

    def __init__(self, cells: int) -> None:
        self._cells, self._done, self._ticks_before, self._ticks = cells, 0, 0, 0
        self._started = time.monotonic()

    def next(self) -> None:
        """Call this when the current evaluation is over."""
        self._done += 1
        self._ticks_before, self._ticks = self._ticks_before + self._ticks, 0

    def line(self, progress: Progress) -> str:
        """The current evaluation's progress, with the expected time until the whole scorecard is done."""
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
        """Expected ticks until the whole scorecard is done; None where that is unknown.

        Evaluations to come, and the current one before its first game is over, are assumed to take as long as those so
        far on average.
        """
        here = progress.ticks_left
        if self._done and not progress.games:
            here = max(0.0, self._ticks_before / self._done - progress.ticks)
        if here is None:
            return None
        so_far = self._ticks_before + progress.ticks + here
        return here + (self._cells - self._done - 1) * so_far / (self._done + 1)


def scorecard(what: str, results: Sequence[Evaluation], trained: Protocol, num_actions: int) -> Group:
    """A table with a row for each evaluation, and notes that explain its words.

    Args:
        what: title of the table.
        results: evaluations of one network in one game.
        trained: protocol of the training.
        num_actions: of the network.
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
            _over(score(result.mean), result.ci95),
            _over(score(result.iqm), result.iqm_ci95),
            _over(score(result.median), (result.returns.min(), result.returns.max())),
            *([f"{result.human_normalized:.2f}"] if normalised else []),
            f"{result.lengths.mean():,.0f}\n{result.cut} cut",
        )
    notes = [f"Intervals: {RESAMPLES:,} bootstrap samples. IQM: mean of the middle half of the games."]
    if normalised:
        notes.append("Human: human-normalised mean, 0 is random play, 1 a human.")
    limit = f"limit of {first.protocol.max_episode_frames:,} frames" if atari else "time limit"
    notes.append(f"Env steps: mean length of a game. Cut: games ended by the {limit}.")
    if any(result.protocol.name != trained.name for result in results):
        which = f"all {num_actions}" if trained.full_action_space else f"the game's minimal set of {num_actions}"
        notes.append(f"Trained under {trained.name}, the network keeps {which} actions under the other protocol.")
    return Group(table, *notes)


def _over(above: str, below: tuple[float, float]) -> str:
    low, high = below
    return f"{above}\n{score(low)} to {score(high)}"
