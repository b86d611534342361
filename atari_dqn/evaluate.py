"""`python -m atari_dqn.evaluate RUN`: a run directory in; a table of scores and a line of `evaluations.jsonl` out."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from atari_dqn import cli
from atari_dqn.config import Setting, help_from_settings, settings
from atari_dqn.runs import read_config

if TYPE_CHECKING:  # the real imports wait until the input is known to be right: they take seconds
    from atari_dqn.envs.make import Protocol
    from atari_dqn.evaluation import Evaluation, Progress


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Play whole games with a trained network and report raw scores.

    A game ends at game over or at the protocol's frame limit, never with a life. Each env plays a fixed share of the
    games, so short ones are not favoured. The result is printed and added to RUN/evaluations.jsonl.
    """

    run: Annotated[Path, tyro.conf.Positional, Setting("a run directory, such as runs/Breakout-1-...")]
    protocol: Annotated[
        Literal["trained", "nature", "machado"],
        Setting(
            "how Atari games are presented. The action set stays the one that the network was trained with: an agent"
            " trained under nature meets machado's sticky actions with the game's minimal set, not with all 18"
        ),
    ] = "trained"
    episodes: Annotated[int, Setting("whole games", "episodes", 1, 100_000)] = 30
    epsilon: Annotated[float, Setting("probability of a random action", "", 0, 1, source="Mnih 2015: 0.05")] = 0.01
    checkpoint: Annotated[str, Setting("latest, best, or an env step of RUN/checkpoints")] = "latest"
    seed: Annotated[
        int, Setting("of games and random actions; never the games of a training with this seed", "", 0, 2**31 - 1)
    ] = 0
    num_workers: Annotated[
        int, Setting("worker processes, one env each; another number plays other games", "processes", 1, 1024)
    ] = 8
    device: Annotated[Literal["auto", "cpu", "cuda"], Setting("where the network runs")] = "auto"


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.evaluate") -> int:
    """Evaluate as the flags say. Returns the exit code; raises `ConfigError` for bad input."""
    command = cli.parse(EvaluateCommand, argv, prog=prog)
    for name, setting in settings(EvaluateCommand).items():
        setting.check(name, getattr(command, name))
    read_config(command.run)

    from atari_dqn.checkpoint import load_policy
    from atari_dqn.envs.pool import WorkerError
    from atari_dqn.evaluation import append_evaluation, evaluate
    from atari_dqn.learner import resolve_device
    from atari_dqn.status import StatusLine

    console = cli.console()
    device = resolve_device(command.device)
    policy = load_policy(command.run, command.checkpoint, device)
    for line in policy.skipped:
        console.print(line, highlight=False, soft_wrap=True)
    trained = policy.config.env.protocol
    protocol = protocol_for(command.protocol, trained)
    console.print(
        f"{policy.spec.env_id}: {command.episodes} games{_described(protocol, trained) if policy.spec.is_atari else ''}"
        f" with the network of env step {policy.env_step:,}",
        highlight=False,
        soft_wrap=True,
    )
    with StatusLine(console, "starting the workers") as status:
        describe = _progress_line()
        try:
            result = evaluate(
                policy.network,
                policy.spec,
                protocol,
                episodes=command.episodes,
                num_workers=command.num_workers,
                epsilon=command.epsilon,
                seed=command.seed,
                device=device,
                on_progress=lambda progress: status.update(describe(progress)),
            )
        except WorkerError as error:
            raise cli.CommandFailed(str(error)) from None
    console.print(_table(result))
    try:
        append_evaluation(command.run, policy.env_step, result)
    except OSError as error:
        raise cli.CommandFailed(f"{command.run / 'evaluations.jsonl'} cannot be written: {error.strerror}") from None
    console.print(f"added to {command.run / 'evaluations.jsonl'}", highlight=False, soft_wrap=True)
    return cli.DONE


def protocol_for(name: str, trained: str) -> Protocol:
    """Protocol `name` ("trained": the training's) with the action set that a network trained under `trained` has."""
    from atari_dqn.envs.make import PROTOCOLS

    asked = PROTOCOLS[trained if name == "trained" else name]
    return dataclasses.replace(asked, full_action_space=PROTOCOLS[trained].full_action_space)


def _described(protocol: Protocol, trained: str) -> str:
    if protocol.name == trained:
        return f" under {protocol.name}"
    actions = "all 18 actions" if protocol.full_action_space else "the minimal action set"
    return f" under {protocol.name}, but {actions} as in training,"


def _progress_line() -> Callable[[Progress], str]:
    from atari_dqn.monitor import duration

    started = time.monotonic()

    def line(progress: Progress) -> str:
        pace = progress.ticks / (time.monotonic() - started)
        text = f"{progress.games} of {progress.episodes} games  {progress.ticks:,} env steps in each env"
        if progress.mean is not None:
            text += f"  mean score so far {progress.mean:.2f}"
        if progress.ticks_left is not None:
            text += f"  ETA {'' if progress.games else 'at most '}{duration(progress.ticks_left / pace)}"
        return text

    return line


def _table(result: Evaluation) -> object:
    from rich.table import Table

    from atari_dqn.evaluation import RESAMPLES

    low, high = result.ci95
    table = Table(title=f"{result.env_id}{result.conditions}", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("games", f"{len(result.returns)}")
    table.add_row("mean score", f"{result.mean:,.2f}")
    table.add_row(f"95% interval of the mean ({RESAMPLES:,} bootstrap samples)", f"{low:,.2f} to {high:,.2f}")
    table.add_row("median score", f"{result.median:,.2f}")
    table.add_row("lowest and highest score", f"{result.returns.min():,.6g} and {result.returns.max():,.6g}")
    if result.human_normalized is not None:
        table.add_row("human-normalised (0 random, 1 human)", f"{result.human_normalized:.3f}")
    table.add_row("mean length", f"{result.lengths.mean():,.0f} env steps")
    return table


if __name__ == "__main__":
    cli.run_command(main)
