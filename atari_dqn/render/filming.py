"""Films of a trained network's games: which game is worth filming, and filming it."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from pathlib import Path

from rich.console import Console

from atari_dqn.cli.command import CommandFailed
from atari_dqn.cli.format import duration
from atari_dqn.cli.output import StatusLine
from atari_dqn.envs.film import FilmedEnv, Picture
from atari_dqn.envs.protocol import Protocol
from atari_dqn.evaluation.references import with_human
from atari_dqn.policy.trained import TrainedNetwork
from atari_dqn.render.game import play
from atari_dqn.render.overlay import Overlay
from atari_dqn.render.video import VideoFile, Window
from atari_dqn.system.signals import StopRequest


@dataclasses.dataclass(frozen=True)
class Game:
    """A game that was played."""

    seed: int
    """Seed of the game and of its random actions."""
    score: float
    """Raw score."""
    env_steps: int
    """Environment steps from the reset to the end."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filming:
    """Games of one trained network under one protocol, played or filmed."""

    policy: TrainedNetwork
    protocol: Protocol
    epsilon: float
    """Probability of a random action."""
    directory: Path
    """Where films are written."""
    console: Console
    overlay: bool
    """Whether a panel beside the game shows what the network thinks."""
    window: bool
    """Whether the game is shown in a window too."""

    def scout(self, seed: int, episodes: int) -> list[Game]:
        """Play games of consecutive seeds without filming them, which takes a fraction of the time.

        Returns:
            The games in the order played; fewer than `episodes` after Ctrl-C.
        """
        games: list[Game] = []
        started = time.monotonic()
        env = FilmedEnv(self.policy.spec, self.protocol, show=None)
        with (
            contextlib.closing(env),
            StatusLine(self.console, "playing") as status,
            contextlib.suppress(KeyboardInterrupt),
        ):
            while len(games) < episodes:
                game = Game((seed + len(games)) % 2**31, 0.0, 0)
                eta = "after the first game"
                for score, env_steps in play(self.policy, env, self.epsilon, game.seed):
                    game = Game(game.seed, score, env_steps)
                    if games:
                        eta = duration((time.monotonic() - started) / len(games) * (episodes - len(games)))
                    place = f"game {len(games) + 1} of {episodes}"
                    status.update(f"{place}  score {score:g}  {env_steps:,} env steps  ETA {eta}")
                games.append(game)
                self._say(f"seed {game.seed}: {self._result(game)}")
        return games

    def film(self, seed: int, kind: str = "", picked: Game | None = None) -> bool:
        """Film the game of `seed` as <env step>-<protocol>-seed<seed><kind>.mp4.

        Args:
            seed: of the game and its random actions.
            kind: what the file's name says beside that.
            picked: the same game as played by `scout`, if it was.

        Returns:
            False when the film was interrupted; what had been filmed by then is kept.

        Raises:
            CommandFailed: the film cannot be written, or the game is not the one that was picked.
        """
        screens: list[VideoFile | Window] = []
        overlay: Overlay | None = None

        def show(picture: Picture) -> None:
            shown = overlay.beside(picture, env.score, env.lives) if overlay else picture
            for screen in screens:
                screen.add(shown)

        env = FilmedEnv(self.policy.spec, self.protocol, show)
        if self.overlay:
            overlay = Overlay.of(self.policy, self.protocol, env)
        on_decision = overlay.decide if overlay else lambda decision: None
        plain = "" if overlay else "-plain"
        file = self.directory / f"{self.policy.env_step}-{self.protocol.name}-seed{seed}{kind}{plain}.mp4"
        game, ending = Game(seed, 0.0, 0), "game over"
        started = time.monotonic()
        try:
            with (
                StopRequest() as stop,
                contextlib.closing(env),
                VideoFile(file, env.fps) as video,
                StatusLine(self.console, "filming") as status,
                stop.breaking(),
            ):
                window = Window(self.policy.spec.env_id, env.fps) if self.window else None
                screens += [video] if window is None else [video, window]
                for score, env_steps in play(self.policy, env, self.epsilon, seed, on_decision):
                    game = Game(seed, score, env_steps)
                    eta = ""
                    if picked:
                        left = (time.monotonic() - started) / env_steps * (picked.env_steps - env_steps)
                        eta = f"  ETA {duration(left)}"
                    length = f"{video.pictures / env.fps:.0f} s of film"
                    status.update(f"score {score:g}  {env_steps:,} env steps  {length}{eta}")
                    if window and window.closed:
                        ending = "window closed"
                        break
        except KeyboardInterrupt:
            ending = "interrupted"
        except OSError as error:
            raise CommandFailed(f"cannot write {file}: {error.strerror or error}") from None
        self._say(f"{ending}: {self._result(game)}")
        self._say(f"{file}: {video.pictures / env.fps:.1f} s of film, {env.fps} pictures a second")
        if picked and ending == "game over" and game != picked:
            raise CommandFailed(
                f"cannot film the picked game of score {picked.score:g}: seed {seed} gave a game of score"
                f" {game.score:g} this time; {self.policy.spec.env_id} is not deterministic"
            )
        return ending != "interrupted"

    def _result(self, game: Game) -> str:
        return f"score {with_human(self.policy.spec.env_id, game.score)} after {game.env_steps:,} env steps"

    def _say(self, line: str) -> None:
        self.console.print(line, highlight=False, soft_wrap=True)
