"""`python -m atari_dqn.evaluate RUN`: a run directory in; a scorecard, and its rows in `evaluations.jsonl`, out."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from atari_dqn.cli.command import DONE, CommandFailed, parse_flags, run_command
from atari_dqn.cli.output import open_console
from atari_dqn.config.setting import ConfigError, Setting, flag, help_from_settings, settings
from atari_dqn.envs.protocol import protocol_for
from atari_dqn.policy.source import playable_source

if TYPE_CHECKING:  # the real imports wait until the input is known to be right: they take seconds
    from atari_dqn.evaluation.evaluation import Evaluation


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateCommand:
    """Play whole games with a trained network and print a scorecard of raw scores.

    An Atari game is played under every protocol with every epsilon asked for, by default nature and machado with 0,
    0.01 and 0.05, and any other env with every epsilon. A game ends at game over or at the protocol's frame limit,
    never with a life. Each env plays a fixed share of the games, so short ones are not favoured. Each result is added
    to RUN/evaluations.jsonl as soon as it is there. Quick: --protocol trained --epsilon 0.01.
    """

    run: Annotated[
        Path, tyro.conf.Positional, Setting("a run directory, such as runs/Breakout-1-..., or an exported policy")
    ]
    protocol: Annotated[
        tuple[Literal["trained", "nature", "machado"], ...],
        Setting(
            "how Atari games are presented, one or several. The action set stays that of the training: an agent"
            " trained under nature meets machado's sticky actions with the game's minimal set, not all 18"
        ),
    ] = ("nature", "machado")
    epsilon: Annotated[
        tuple[float, ...], Setting("probability of a random action, one or several", "", 0, 1, source="Mnih 2015: 0.05")
    ] = (0.0, 0.01, 0.05)
    episodes: Annotated[int, Setting("whole games of each", "episodes", 1, 100_000)] = 30
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
    command = parse_flags(EvaluateCommand, argv, prog=prog)
    for name, setting in settings(EvaluateCommand).items():
        setting.check(name, getattr(command, name))
    for name in ("protocol", "epsilon"):
        if not getattr(command, name):
            raise ConfigError(f"{flag(name)} names none; leave it away for all")
    source = playable_source(command.run, command.checkpoint)
    command = dataclasses.replace(command, run=source.home)

    from atari_dqn.agent.device import resolve_device
    from atari_dqn.cli.output import StatusLine
    from atari_dqn.envs.protocol import PROTOCOLS
    from atari_dqn.evaluation.evaluation import append_evaluation, evaluate
    from atari_dqn.evaluation.scorecard import CardProgress, scorecard
    from atari_dqn.workers.pool import WorkerError

    console = open_console()
    device = resolve_device(command.device)
    policy = source.load(device)
    for line in policy.skipped:
        console.print(line, highlight=False, soft_wrap=True)
    trained = policy.config.env.protocol
    # What is no Atari game takes no notice of a protocol.
    names = command.protocol if policy.spec.is_atari else (trained,)
    protocols = {protocol.name: protocol for protocol in (protocol_for(name, trained) for name in names)}
    cells = list(itertools.product(protocols.values(), dict.fromkeys(command.epsilon)))
    what = f"{policy.spec.env_id}, the network of env step {policy.env_step:,}"
    console.print(
        f"{what}: {f'{len(cells)} times ' if len(cells) > 1 else ''}{command.episodes} games",
        highlight=False,
        soft_wrap=True,
    )
    results: list[Evaluation] = []
    with StatusLine(console, "starting the workers") as status:
        describe = CardProgress(len(cells))
        for protocol, epsilon in cells:
            try:
                result = evaluate(
                    policy.network,
                    policy.spec,
                    protocol,
                    episodes=command.episodes,
                    num_envs=command.num_workers,
                    num_workers=command.num_workers,
                    epsilon=epsilon,
                    seed=command.seed,
                    device=device,
                    on_progress=lambda progress: status.update(describe.line(progress)),
                )
            except WorkerError as error:
                raise CommandFailed(str(error)) from None
            try:
                append_evaluation(command.run, policy.env_step, result)
            except OSError as error:
                file = command.run / "evaluations.jsonl"
                raise CommandFailed(f"{file} cannot be written: {error.strerror}") from None
            describe.next()
            results.append(result)
            if len(cells) > 1:
                console.print(result.summary(), highlight=False, soft_wrap=True)
    console.print(scorecard(what, results, PROTOCOLS[trained], policy.spec.num_actions))
    console.print(f"added to {command.run / 'evaluations.jsonl'}", highlight=False, soft_wrap=True)
    return DONE


if __name__ == "__main__":
    run_command(main)
