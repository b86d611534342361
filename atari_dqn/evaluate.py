"""`python -m atari_dqn.evaluate RUN`: play whole games with a trained network and print a scorecard."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from atari_dqn.cli.command import DONE, parse_flags, run_command
from atari_dqn.cli.output import open_console, say
from atari_dqn.config.setting import ConfigError, Setting, flag, help_from_settings
from atari_dqn.evaluation.scorecard import EPSILONS, NUM_WORKERS, PROTOCOL_NAMES, evaluate_cells
from atari_dqn.policy.source import playable_source


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Play whole games with a trained network and print a scorecard of raw scores.

    An Atari game is played under each --protocol with each --epsilon, any other env with each --epsilon. A game ends
    at game over or at the protocol's frame limit, never with a lost life. Each env plays a fixed share of the games, so
    short games are not favoured. Results are added to RUN/evaluations.jsonl one by one. For a quick look: --protocol
    trained --epsilon 0.01.
    """

    run: Annotated[
        Path | None,
        tyro.conf.Positional,
        Setting("a run directory or an exported policy; None: the newest run in runs"),
    ] = None
    protocol: Annotated[
        tuple[Literal["trained", "nature", "machado"], ...],
        Setting(
            "how Atari games are presented, one or several. The action set stays that of the training: an agent"
            " trained under nature plays with machado's sticky actions but the game's minimal action set, not all 18"
        ),
    ] = PROTOCOL_NAMES
    epsilon: Annotated[
        tuple[float, ...], Setting("probability of a random action, one or several", "", 0, 1, source="Mnih 2015: 0.05")
    ] = EPSILONS
    episodes: Annotated[int, Setting("whole games for each protocol and epsilon", "episodes", 1, 100_000)] = 30
    checkpoint: Annotated[str, Setting("latest, best, or an env step of RUN/checkpoints")] = "latest"
    seed: Annotated[
        int,
        Setting("of games and random actions; a training with this seed plays other games", "", 0, 2**31 - 1),
    ] = 0
    num_workers: Annotated[
        int, Setting("worker processes with one env each; another number plays other games", "processes", 1, 1024)
    ] = NUM_WORKERS
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Setting("where the network runs")] = "auto"


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.evaluate") -> int:
    """Evaluate as the flags say. Returns the exit code; raises `ConfigError` for bad input."""
    command = parse_flags(EvaluateCommand, argv, prog=prog)
    for name in ("protocol", "epsilon"):
        if not getattr(command, name):
            raise ConfigError(f"{flag(name)} is empty; omit it for the default")
    console = open_console()
    source = playable_source(command.run, command.checkpoint)

    from atari_dqn.agent.device import resolve_device

    evaluate_cells(
        source.load(resolve_device(command.device), partial(say, console)),
        source.home,
        console,
        episodes=command.episodes,
        protocol_names=command.protocol,
        epsilons=command.epsilon,
        num_workers=command.num_workers,
        seed=command.seed,
    )
    return DONE


if __name__ == "__main__":
    run_command(main)
