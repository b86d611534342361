"""`python -m atari_dqn.play RUN`: a run directory in; games as videos in RUN/videos, or in a window, or a picture of
what surprised the network most, out."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from atari_dqn.cli.command import DONE, INTERRUPTED, CommandFailed, parse_flags, run_command
from atari_dqn.cli.output import open_console
from atari_dqn.config.setting import ConfigError, Setting, help_from_settings, settings
from atari_dqn.evaluation.references import with_human
from atari_dqn.policy.source import playable_source
from atari_dqn.render.game import play
from atari_dqn.system.signals import StopRequest

if TYPE_CHECKING:  # the real imports wait until the input is known to be right: they take seconds
    from rich.console import Console

    from atari_dqn.envs.film import Picture
    from atari_dqn.envs.protocol import Protocol
    from atari_dqn.policy.trained import TrainedNetwork

EPISODES = 10
"""Games that the best or the worst is picked from, where the user does not say."""


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayCommand:
    """Film whole games of a trained network, or show what surprises it.

    Writes RUN/videos/<env step>-<protocol>-seed<seed>.mp4: every picture of the game, also those the network does not
    see, in colour and at its natural speed (Atari: 60 a second), and beside it what the network makes of it. Ctrl-C
    ends the video early and keeps it; so does SIGTERM.
    """

    run: Annotated[
        Path, tyro.conf.Positional, Setting("a run directory, such as runs/Breakout-1-..., or an exported policy")
    ]
    overlay: Annotated[
        bool, Setting("beside the game a panel: Q of every action, the value over time, score, reward and lives")
    ] = True
    best: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, Setting("play --episodes games, and film the one of the highest score")
    ] = False
    worst: Annotated[bool, tyro.conf.FlagCreatePairsOff, Setting("the same for the lowest; with --best: film both")] = (
        False
    )
    episodes: Annotated[
        int | None,
        Setting(f"games to pick from, of seeds --seed, --seed + 1, ...; None: {EPISODES}", "episodes", 1, 100_000),
    ] = None
    surprise: Annotated[
        bool,
        tyro.conf.FlagCreatePairsOff,
        Setting("no game: draw the transitions of the highest priority in the saved replay, to RUN/plots"),
    ] = False
    window: Annotated[
        bool, tyro.conf.FlagCreatePairsOff, Setting("show the game in a window too (q or Escape closes it)")
    ] = False
    protocol: Annotated[
        Literal["trained", "nature", "machado"],
        Setting("how Atari games are presented; the actions stay those of training"),
    ] = "trained"
    epsilon: Annotated[float, Setting("probability of a random action", "", 0, 1)] = 0.01
    checkpoint: Annotated[str, Setting("latest, best, or an env step of RUN/checkpoints")] = "latest"
    seed: Annotated[int, Setting("of the game and the random actions", "", 0, 2**31 - 1)] = 0
    device: Annotated[Literal["auto", "cpu", "cuda"], Setting("where the network runs")] = "auto"


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.play") -> int:
    """Play as the flags say. Returns the exit code; raises `ConfigError` for bad input."""
    command = parse_flags(PlayCommand, argv, prog=prog)
    for name, setting in settings(PlayCommand).items():
        setting.check(name, getattr(command, name))
    picking = command.best or command.worst
    if command.episodes is not None and not picking:
        raise ConfigError("--episodes is for --best or --worst, which pick one of so many games")
    if command.surprise and (picking or command.window):
        raise ConfigError("--surprise plays no game; leave out --best, --worst and --window")
    source = playable_source(command.run, command.checkpoint)
    command = dataclasses.replace(command, run=source.home)
    console = open_console()
    if command.surprise:
        from atari_dqn.render.surprise import check_priorities, contact_sheet

        if source.exported is not None:
            raise ConfigError(f"--surprise draws from a run's saved replay; {source.path} has none")
        check_priorities(source.config)
        file = contact_sheet(command.run, command.checkpoint, console)
        console.print(str(file), highlight=False, soft_wrap=True)
        return DONE

    if command.window:
        from atari_dqn.render.video import check_display

        check_display()

    import torch

    from atari_dqn.agent.device import resolve_device
    from atari_dqn.envs.protocol import protocol_for

    torch.set_num_threads(1)  # one observation at a time: more only wait for each other, and long on a busy machine
    policy = source.load(resolve_device(command.device))
    for line in policy.skipped:
        console.print(line, highlight=False, soft_wrap=True)
    protocol = protocol_for(command.protocol, policy.config.env.protocol)
    if not picking:
        return _film(policy, protocol, command, command.seed, "", console)
    games, chosen = _scout(policy, protocol, command, console), []
    if len(games) < (command.episodes or EPISODES):
        console.print(f"interrupted after {len(games)} games, and nothing filmed", highlight=False)
        return INTERRUPTED
    if command.best:
        chosen.append(("best", max(games, key=lambda game: game.score)))
    if command.worst:
        chosen.append(("worst", min(games, key=lambda game: game.score)))
    for name, game in chosen:
        code = _film(policy, protocol, command, game.seed, f"-{name}-of-{len(games)}", console, game)
        if code != DONE:
            return code
    return DONE


@dataclasses.dataclass(frozen=True)
class Game:
    """One that was played."""

    seed: int
    score: float
    env_steps: int


def _scout(policy: TrainedNetwork, protocol: Protocol, command: PlayCommand, console: Console) -> list[Game]:
    """Play the games to pick from, unfilmed: that takes a fraction of the time. Fewer than asked for after Ctrl-C."""
    from atari_dqn.cli.format import duration
    from atari_dqn.cli.output import StatusLine
    from atari_dqn.envs.film import FilmedEnv

    episodes, began = command.episodes or EPISODES, time.monotonic()
    games: list[Game] = []
    env = FilmedEnv(policy.spec, protocol, show=None)
    with (
        contextlib.closing(env),
        StatusLine(console, "playing") as status,
        contextlib.suppress(KeyboardInterrupt),
    ):
        while len(games) < episodes:
            seed = (command.seed + len(games)) % 2**31
            for score, env_steps in play(policy, env, command.epsilon, seed):
                left = (time.monotonic() - began) / len(games) * (episodes - len(games)) if games else None
                status.update(
                    f"game {len(games) + 1} of {episodes}  score {score:g}  {env_steps:,} env steps"
                    f"  ETA {'after the first game' if left is None else duration(left)}"
                )
            games.append(Game(seed, score, env_steps))
            shown = with_human(policy.spec.env_id, score)
            console.print(f"seed {seed}: score {shown} after {env_steps:,} env steps", highlight=False)
    return games


def _film(
    policy: TrainedNetwork,
    protocol: Protocol,
    command: PlayCommand,
    seed: int,
    kind: str,
    console: Console,
    before: Game | None = None,
) -> int:
    """Film the game of `seed`, `before` as it was played already. Returns the exit code.

    Raises `CommandFailed` when it comes out otherwise now, or cannot be written.
    """
    from atari_dqn.cli.format import duration
    from atari_dqn.cli.output import StatusLine
    from atari_dqn.envs.film import FilmedEnv
    from atari_dqn.render.overlay import Overlay
    from atari_dqn.render.video import VideoFile, Window

    screens: list[VideoFile | Window] = []
    overlay: Overlay | None = None

    def show(picture: Picture) -> None:
        shown = overlay.beside(picture, env.score, env.lives) if overlay else picture
        for screen in screens:
            screen.add(shown)

    env = FilmedEnv(policy.spec, protocol, show)
    if command.overlay:
        overlay = Overlay.of(policy, protocol, env)
    plain = "" if command.overlay else "-plain"
    name = f"{policy.env_step}-{protocol.name}-seed{seed}{kind}{plain}.mp4"
    file, ending, score, env_steps = command.run / "videos" / name, "game over", 0.0, 0
    began = time.monotonic()
    try:
        with (
            StopRequest() as stop,
            contextlib.closing(env),
            VideoFile(file, env.fps) as video,
            StatusLine(console, "filming") as status,
            stop.breaking(),
        ):
            screens.append(video)
            if command.window:
                window = Window(policy.spec.env_id, env.fps)
                screens.append(window)
            decided = overlay.decide if overlay else lambda decision: None
            for score, env_steps in play(policy, env, command.epsilon, seed, decided):
                eta = ""
                if before:
                    left = (time.monotonic() - began) / env_steps * (before.env_steps - env_steps)
                    eta = f"  ETA {duration(left)}"
                made = f"{video.pictures / env.fps:.0f} s of film"
                status.update(f"score {score:g}  {env_steps:,} env steps  {made}{eta}")
                if command.window and window.closed:
                    ending = "window closed"
                    break
    except KeyboardInterrupt:
        ending = "interrupted"
    except OSError as error:
        raise CommandFailed(f"{file} cannot be written: {error.strerror or error}") from None
    shown = with_human(policy.spec.env_id, score)
    console.print(f"{ending}: score {shown} after {env_steps:,} env steps", highlight=False, soft_wrap=True)
    film = f"{video.pictures / env.fps:.1f} s of film, {env.fps} pictures a second"
    console.print(f"{file}: {film}", highlight=False, soft_wrap=True)
    if before and ending == "game over" and Game(seed, score, env_steps) != before:
        raise CommandFailed(
            f"this is another game than the one picked, whose score was {before.score:g}: {policy.spec.env_id} is no"
            " function of its seed and its actions"
        )
    return INTERRUPTED if ending == "interrupted" else DONE


if __name__ == "__main__":
    run_command(main)
