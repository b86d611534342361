"""Films of a trained network's games: which game is worth filming, and filming it."""

import contextlib
import dataclasses
import functools
import time
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from atari_dqn.cli.command import CommandFailed
from atari_dqn.cli.format import duration
from atari_dqn.cli.output import StatusLine, say
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.film import FilmedEnv, Picture, check_drawable
from atari_dqn.envs.protocol import Protocol
from atari_dqn.evaluation.player import play
from atari_dqn.evaluation.references import with_human
from atari_dqn.policy.trained import TrainedNetwork
from atari_dqn.render.overlay import Overlay
from atari_dqn.render.video import EncoderError, VideoFile, Window
from atari_dqn.system.files import check_room_for
from atari_dqn.system.signals import StopRequest


class Game(NamedTuple):
    """A game that was played, or is."""

    seed: int
    """Seed of the game and of its random actions."""
    score: float = 0.0
    env_steps: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filming:
    """Games of one trained network under one protocol, played or filmed."""

    policy: TrainedNetwork
    protocol: Protocol
    epsilon: float
    directory: Path
    console: Console
    overlay: bool
    """Whether a panel beside the game shows what the network thinks."""
    window: bool
    """Whether the game is shown in a window too."""

    def scout(self, seed: int, episodes: int) -> list[Game]:
        """Play games of consecutive seeds without filming them, which takes a fraction of the time.

        Returns the games in the order played; fewer than `episodes` after Ctrl-C. Raises `ConfigError` if none of them
        could be filmed.
        """
        check_drawable(self.policy.spec)
        try:
            check_room_for(self.directory / "film")
        except OSError as error:
            raise ConfigError(f"cannot write to {self.directory}: {error.strerror}") from None
        games: list[Game] = []
        started = time.monotonic()
        say_once = functools.cache(self._say)  # a note is the same in every game
        env = FilmedEnv(self.policy.spec, self.protocol, show=None)
        with (
            contextlib.closing(env),
            StatusLine(self.console, "playing") as status,
            contextlib.suppress(KeyboardInterrupt),
        ):
            while len(games) < episodes:
                game = Game((seed + len(games)) % 2**31)
                for score, env_steps in play(self.policy.network, env, self.epsilon, game.seed, say=say_once):
                    game = Game(game.seed, score, env_steps)
                    seconds = time.monotonic() - started
                    eta = f"  ETA {duration(seconds / len(games) * (episodes - len(games)))}" if games else ""
                    status.update(f"game {len(games) + 1} of {episodes}  {_progress(game, env)}{eta}")
                games.append(game)
                self._say(f"seed {game.seed}: {self._result(game)}")
        return games

    def file(self, seed: int, kind: str = "") -> Path:
        """Where the film of the game of `seed` goes."""
        protocol = f"-{self.protocol.name}" if self.policy.spec.is_atari else ""
        plain = "" if self.overlay else "-plain"
        return self.directory / f"{self.policy.env_step}{protocol}-seed{seed}{kind}{plain}.mp4"

    def film(self, seed: int, kind: str = "") -> bool:
        """Film the game of `seed` as <env step>[-<protocol>]-seed<seed><kind>.mp4, with a protocol for Atari.

        Returns False when the film was interrupted; what had been filmed by then is kept. Raises `CommandFailed` if the
        film cannot be written.
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
        file = self.file(seed, kind)
        game, ending = Game(seed), "game over"
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
                for score, env_steps in play(self.policy.network, env, self.epsilon, seed, on_decision, self._say):
                    game = Game(seed, score, env_steps)
                    status.update(f"{_progress(game, env)}  {video.pictures / env.fps:.0f} s of film")
                    if window and window.closed:
                        ending = "window closed"
                        break
                if env.cut:
                    ending = "time limit"
        except KeyboardInterrupt:
            ending = "interrupted"
        except (OSError, EncoderError) as error:
            raise CommandFailed(f"cannot write {file}: {error.strerror or error}") from None
        self._say(f"{ending}: {self._result(game)}")
        self._say(f"{file}: {video.pictures / env.fps:.1f} s of film, {env.fps} pictures a second")
        return ending != "interrupted"

    def _result(self, game: Game) -> str:
        return f"score {with_human(self.policy.spec.env_id, game.score)} after {game.env_steps:,} env steps"

    def _say(self, line: str) -> None:
        say(self.console, line)


def _progress(game: Game, env: FilmedEnv) -> str:
    return f"score {game.score:g}  {game.env_steps:,} of at most {max(env.limit, game.env_steps):,} env steps"
