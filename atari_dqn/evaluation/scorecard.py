"""Scorecard of one network: evaluations under several protocols and epsilons, with their progress, as one table.

torch and gymnasium are imported when the games begin, so that commands can take their defaults from here and still
answer bad input at once.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from typing import Protocol as TypingProtocol

from rich import box
from rich.console import Console, Group
from rich.table import Table

from atari_dqn.cli.command import CommandFailed
from atari_dqn.cli.format import duration, score
from atari_dqn.cli.output import StatusLine, say
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.ids import is_atari
from atari_dqn.envs.protocol import GAME_LIMIT, PROTOCOLS, EnvSpec, Protocol, protocol_for
from atari_dqn.evaluation.intervals import RESAMPLES
from atari_dqn.evaluation.result import Evaluation
from atari_dqn.runs.records import line
from atari_dqn.system.files import append, check_room_for

if TYPE_CHECKING:
    import torch

PROTOCOL_NAMES: tuple[Literal["nature", "machado"], ...] = ("nature", "machado")
EPSILONS = (0.0, 0.01, 0.05)
"""What a scorecard of an Atari game covers by default."""
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
) -> list[Evaluation]:
    """Evaluate a network under every protocol (Atari only) with every epsilon, print a scorecard and return it.

    Each result is appended to `run_dir`/evaluations.jsonl as soon as its games are over. Raises `ConfigError` before
    the first game if that cannot be written, and `CommandFailed` if a worker failed or a result was not written; then
    all are printed nevertheless.
    """
    from atari_dqn.evaluation.evaluation import Games, evaluate
    from atari_dqn.workers.pool import WorkerError

    spec, trained_under = trained.spec, trained.config.env.protocol
    names = protocol_names if spec.is_atari else (trained_under,)
    protocols = dict.fromkeys(protocol_for(name, trained_under) for name in names)
    cells = list(itertools.product(protocols, dict.fromkeys(epsilons)))
    file = run_dir / "evaluations.jsonl"
    try:
        check_room_for(file)
    except OSError as error:
        raise ConfigError(f"cannot write {file}: {error.strerror}; try a copy of the run that is writable") from None
    what = f"{spec.env_id}, the network of env step {trained.env_step:,}"
    say(console, f"{what}: {len(cells) * episodes:,} games")
    results: list[Evaluation] = []
    lost = ""
    started = time.monotonic()

    def show(games: Games) -> None:
        done, total = episodes * len(results) + games.finished, episodes * len(cells)
        text = f"{done} of {total} games  {games.ticks:,} env steps in each env  mean score so far {score(games.mean)}"
        if done:
            text += f"  ETA {duration((time.monotonic() - started) / done * (total - done))}"
        status.update(text)

    with StatusLine(console, "starting the workers") as status:
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
                    on_progress=show,
                    say=partial(say, console),
                )
            except WorkerError as error:
                raise CommandFailed(str(error)) from None
            try:
                append(file, line({"env_step": trained.env_step, **result.to_dict()}))
            except OSError as error:
                lost = f"cannot write {file}: {error.strerror}; what is printed above is not all in it"
            results.append(result)
            if len(cells) > 1:
                say(console, result.summary())
    console.print(scorecard(what, results, PROTOCOLS[trained_under], spec.num_actions))
    if lost:
        raise CommandFailed(lost)
    say(console, f"added to {file}")
    return results


def scorecard(what: str, results: Sequence[Evaluation], trained: Protocol, num_actions: int) -> Group:
    """A table with a row for each evaluation of one network, and notes that explain its words."""
    first = results[0]
    atari, normalized = is_atari(first.env_id), first.human_normalized is not None
    table = Table(title=f"{what}: {len(first.returns)} games a row", box=box.SIMPLE_HEAD, collapse_padding=True)
    table.add_column("epsilon\nprotocol" if atari else "epsilon", style="bold")
    for name in ("mean\n95% interval", "IQM\n95% interval", "median\nrange"):
        table.add_column(name, justify="right")
    if normalized:
        table.add_column("human", justify="right")
    table.add_column("env steps\ncut", justify="right")
    for result in results:
        table.add_row(
            f"{result.epsilon:g}\n{result.protocol.name if atari else ''}",
            _over(score(result.mean), result.ci95),
            _over(score(result.iqm), result.iqm_ci95),
            _over(score(result.median), (result.returns.min(), result.returns.max())),
            *([f"{result.human_normalized:.2f}"] if normalized else []),
            f"{result.lengths.mean():,.0f}\n{result.cut} cut",
        )
    notes = [f"Intervals: {RESAMPLES:,} bootstrap samples. IQM: mean of the middle half of the games."]
    if normalized:
        notes.append("Human: human-normalised mean, 0 is random play, 1 a human.")
    limit = (
        f"limit of {first.protocol.max_episode_frames:,} frames" if atari else f"time limit, or {GAME_LIMIT:,} steps"
    )
    notes.append(f"Env steps: mean length of a game. Cut: games ended by the {limit}.")
    if any(result.protocol.name != trained.name for result in results):
        which = f"all {num_actions}" if trained.full_action_space else f"the game's minimal set of {num_actions}"
        notes.append(f"Trained under {trained.name}, the network keeps {which} actions under the other protocol.")
    return Group(table, *notes)


def _over(above: str, below: tuple[float, float]) -> str:
    low, high = below
    return f"{above}\n{score(low)} to {score(high)}"
