"""`python -m atari_dqn.play RUN`: film games of a trained network."""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import tyro

from atari_dqn.cli.command import DONE, INTERRUPTED, parse_flags, run_command
from atari_dqn.cli.output import open_console, say
from atari_dqn.config.setting import ConfigError, Setting, help_from_settings
from atari_dqn.policy.source import playable_source

EPISODES = 10
"""Default number of games that the best or the worst is picked from."""


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayCommand:
    """Film whole games of a trained network.

    Writes RUN/videos/<env step>[-<protocol>]-seed<seed>.mp4: every picture of the game, also those that the network
    does not see, in colour and at natural speed (Atari: 60 a second), with the network's Q values beside it. Ctrl-C or
    SIGTERM ends the video early and keeps it.
    """

    run: Annotated[
        Path | None,
        tyro.conf.Positional,
        Setting("a run directory or an exported policy; None: the newest run in runs"),
    ] = None
    overlay: Annotated[
        bool, Setting("show a panel beside the game: Q of every action, value over time, score, reward and lives")
    ] = True
    best: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, Setting("play --episodes games and film the one with the highest score")
    ] = False
    worst: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, Setting("film the one with the lowest score; with --best: film both")
    ] = False
    episodes: Annotated[
        int | None,
        Setting(
            f"games to pick from, with seeds --seed, --seed + 1, ...; by default {EPISODES}", "episodes", 1, 100_000
        ),
    ] = None
    window: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, Setting("also show the game in a window (q or Escape closes it)")
    ] = False
    protocol: Annotated[
        Literal["trained", "nature", "machado"],
        Setting("how Atari games are presented; the action set stays that of the training"),
    ] = "trained"
    epsilon: Annotated[float, Setting("probability of a random action", "", 0, 1)] = 0.01
    checkpoint: Annotated[str, Setting("latest, best, or an env step of RUN/checkpoints")] = "latest"
    seed: Annotated[int, Setting("of the game and the random actions", "", 0, 2**31 - 1)] = 0
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Setting("where the network runs")] = "auto"


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.play") -> int:
    """Play as the flags say. Returns the exit code; raises `ConfigError` for bad input."""
    command = parse_flags(PlayCommand, argv, prog=prog)
    picking = command.best or command.worst
    if command.episodes is not None and not picking:
        raise ConfigError("--episodes needs --best or --worst, which pick one of that many games")
    console = open_console()
    source = playable_source(command.run, command.checkpoint)
    if command.window:
        from atari_dqn.render.video import check_display

        check_display()

    import torch

    from atari_dqn.agent.device import resolve_device
    from atari_dqn.envs.protocol import protocol_for
    from atari_dqn.render.filming import Filming

    torch.set_num_threads(1)  # one observation at a time: on a busy machine more threads only wait for each other
    policy = source.load(resolve_device(command.device), partial(say, console))
    filming = Filming(
        policy=policy,
        protocol=protocol_for(command.protocol, policy.config.env.protocol),
        epsilon=command.epsilon,
        directory=source.home / "videos",
        console=console,
        overlay=command.overlay,
        window=command.window,
    )
    if not picking:
        return DONE if filming.film(command.seed) else INTERRUPTED
    episodes = command.episodes or EPISODES
    games = filming.scout(command.seed, episodes)
    if len(games) < episodes:
        say(console, f"interrupted after {len(games)} games, before filming")
        return INTERRUPTED
    picks = {"best": max(games, key=lambda game: game.score)} if command.best else {}
    if command.worst:
        picks["worst"] = min(games, key=lambda game: game.score)
    if len(picks) == 2 and picks["worst"] == picks["best"]:
        say(console, f"all {episodes} games have the same score, so one is filmed")
        del picks["worst"]
    for name, game in picks.items():
        if not filming.film(game.seed, f"-{name}-of-{episodes}"):
            return INTERRUPTED
    return DONE


if __name__ == "__main__":
    run_command(main)
