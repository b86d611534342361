"""Training from Python; docs/python.md shows all of it.

A run from Python writes the same directory as `python -m atari_dqn.train` with the same settings, and either resumes
what the other began.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import functools
import json
import weakref
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

from atari_dqn.cli.output import open_console
from atari_dqn.config.file import from_dict
from atari_dqn.config.keywords import Settings
from atari_dqn.config.objects import name_of
from atari_dqn.config.presets import Preset
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.monitoring.views import Row
from atari_dqn.policy.policy import Policy
from atari_dqn.policy.source import Source, playable_source
from atari_dqn.runs.directory import named, read_config
from atari_dqn.runs.records import read_rows
from atari_dqn.system.signals import StopRequest
from atari_dqn.train import TrainCommand, rows
from atari_dqn.training.beginning import begin_with, with_settings

if TYPE_CHECKING:
    import gymnasium as gym
    from matplotlib.figure import Figure
    from rich.console import Console
    from torch import nn

    from atari_dqn.evaluation.result import Evaluation

ProtocolName = Literal["trained", "nature", "machado"]
Device = Literal["auto", "cpu", "cuda"]


class Arguments(Settings, total=False):
    """What a training is given besides its environment: every setting by its flag's name, and these."""

    network: str | Callable[[tuple[int, ...]], nn.Module]
    """Also a class or function called with the shape of an observation; see `agent.reference.own_trunk`"""
    wrapper: str | Callable[[Any], gym.Env[Any, Any]]
    """Also the class or function itself"""
    env_kwargs: str | Mapping[str, Any]
    """Also the arguments themselves"""
    preset: Preset
    config: str | Path
    init_from: str | Path
    replay_edits: str | Path
    labml_url: str
    wandb: bool
    dashboard: bool
    cluster: str
    metrics: Callable[[Row, nn.Module], Mapping[str, float]]
    """Returns further metrics by name, such as `own/entropy`, from a row and the network, which it must not change"""
    verbose: bool
    """Print what the command prints; by default nothing is printed"""


def train(
    env_id: str | Callable[..., gym.Env[Any, Any]] | None = None,
    *,
    on_row: Callable[[Row], object] | None = None,
    stop: Callable[[Row], bool] | None = None,
    **arguments: Unpack[Arguments],
) -> Run:
    """Train until the end, or resume the run in `run_dir`.

    Args:
        env_id: A game such as `breakout`, a gymnasium id, or a class or function that makes an environment.
        on_row: Called with every row of metrics, as they are in metrics.jsonl. What it raises ends the training, with
            the state saved.
        stop: Called with every row; the training ends, with the state saved, when it returns True.
        **arguments: See `Arguments`.

    Raises:
        ConfigError: A `ValueError` for wrong input, with one line that says what would be right.
        KeyboardInterrupt: Ctrl-C (in the main thread), with the state saved; a second one is raised at once.
        CommandFailed: The run failed later; what was saved can be resumed.
    """
    request = StopRequest(kill=False)
    made = _training(request, env_id, arguments)
    with contextlib.closing(made):
        while True:
            try:
                row = next(made)
            except StopIteration as end:
                run: Run = end.value
                return run
            if on_row:
                on_row(row)
            if stop and stop(row):
                request.ask()


def training(
    env_id: str | Callable[..., gym.Env[Any, Any]] | None = None, **arguments: Unpack[Arguments]
) -> Generator[Row, None, Run]:
    """Train as `train`, and yield every row of metrics. The state is saved when the generator is closed."""
    made = _training(StopRequest(kill=False), env_id, arguments)
    _left.add(made)
    return made


_left: weakref.WeakSet[Generator[Row, None, Run]] = weakref.WeakSet()
"""Generators that a script may not have closed when it ends"""


@atexit.register
def _close() -> None:
    for made in list(_left):
        with contextlib.suppress(ValueError):  # it runs in another thread
            made.close()


def _training(request: StopRequest, env_id: Any, arguments: Arguments) -> Generator[Row, None, Run]:
    asked = {"env_id": env_id, **arguments}
    given: dict[str, Any] = {name: value for name, value in asked.items() if value is not None or name == "stop_score"}
    metrics, verbose = given.pop("metrics", None), given.pop("verbose", False)
    with request:
        _, run_dir = yield from rows(_command(given), request, _console(verbose), metrics)
    if request.signal:
        raise KeyboardInterrupt(f"the state is saved; resume with run_dir={str(run_dir)!r}")
    return Run(run_dir)


def _command(given: dict[str, Any]) -> TrainCommand:
    """The command with these flags. Raises `ConfigError`."""
    given = {name: READERS[name](value) if name in READERS else value for name, value in given.items()}
    besides = {name: given.pop(name) for name in BESIDES if name in given}
    scanned = {name: besides.get(name, given.get(name)) for name in ("config", "preset", "run_dir", "env_id", "device")}
    if scanned["preset"] not in (None, *get_args(Preset)):
        raise ConfigError(f"preset is {scanned['preset']!r:.60}; it must be one of {', '.join(get_args(Preset))}")
    total = str(given["total_env_steps"]) if "total_env_steps" in given else None
    preset, default = begin_with(argparse.Namespace(**scanned, total_env_steps=total, seeds=None), None, "train")
    return with_settings(TrainCommand, from_dict(given, default), **(besides | {"preset": preset}))


def _json(value: Any) -> str:
    try:
        return value if isinstance(value, str) else json.dumps(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"env_kwargs cannot be kept as JSON: {error}; try a function that makes it") from None


READERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("run_dir", "config", "init_from", "replay_edits"), lambda value: Path(value).expanduser()),
    **dict.fromkeys(("env_id", "network", "wrapper"), name_of),
    "env_kwargs": _json,
}
BESIDES = ("preset", "config", "init_from", "replay_edits", "labml_url", "wandb", "dashboard", "cluster")


def _console(verbose: bool) -> Console:
    console = open_console()
    console.quiet = not verbose
    return console


class Run:
    """A run directory, of this process or any other."""

    def __init__(self, run_dir: str | Path) -> None:
        """Raises `ConfigError` if it is not a run's."""
        self.run_dir = named(Path(run_dir).expanduser()).path

    def __repr__(self) -> str:
        return f"Run({str(self.run_dir)!r})"

    @property
    def config(self) -> TrainConfig:
        """The settings."""
        return read_config(self.run_dir)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics so far."""
        return read_rows(self.run_dir / "metrics.jsonl")

    @functools.cached_property
    def policy(self) -> Policy:
        """The trained agent, of the newest checkpoint when this is first read."""
        return Policy.load(self.run_dir)

    def evaluate(
        self,
        *,
        episodes: int = 30,
        epsilon: float = 0.01,
        protocol: ProtocolName = "trained",
        checkpoint: str = "latest",
        seed: int = 0,
        num_workers: int = 8,
        device: Device = "auto",
        verbose: bool = False,
    ) -> Evaluation:
        """Play whole games, as `python -m atari_dqn.evaluate`, which explains the arguments.

        The result has `mean`, `ci95`, `returns` and more, and is added to evaluations.jsonl. Raises `ConfigError`.
        """
        from atari_dqn.agent.device import resolve_device
        from atari_dqn.evaluation.scorecard import evaluate_cells

        (result,) = evaluate_cells(
            self._source(checkpoint).load(resolve_device(device)),
            self.run_dir,
            _console(verbose),
            episodes=int(episodes),  # they are kept as JSON, which has no numbers of numpy
            protocol_names=(protocol,),
            epsilons=(float(epsilon),),
            num_workers=num_workers,
            seed=int(seed),
        )
        return result

    def plot(self) -> Figure:
        """The learning curve, a matplotlib figure. Raises `ConfigError` while no game is finished."""
        from atari_dqn.comparison.figure import draw
        from atari_dqn.comparison.runs import configurations, read_run

        return draw(configurations([read_run(self.run_dir)]))

    def video(
        self,
        *,
        seed: int = 0,
        best_of: int = 1,
        epsilon: float = 0.01,
        protocol: ProtocolName = "trained",
        checkpoint: str = "latest",
        overlay: bool = True,
        device: Device = "auto",
        verbose: bool = False,
    ) -> Path:
        """Film the game of `seed`, or the best of as many, as `python -m atari_dqn.play`; returns the MP4's path.

        Raises `ConfigError`, and `KeyboardInterrupt` with what had been filmed by then kept.
        """
        from atari_dqn.agent.device import resolve_device
        from atari_dqn.envs.protocol import protocol_for
        from atari_dqn.render.filming import Filming

        trained = self._source(checkpoint).load(resolve_device(device))
        filming = Filming(
            policy=trained,
            protocol=protocol_for(protocol, trained.config.env.protocol),
            epsilon=epsilon,
            directory=self.run_dir / "videos",
            console=_console(verbose),
            overlay=overlay,
            window=False,
        )
        kind = ""
        if best_of > 1:
            seed = max(filming.scout(seed, best_of), key=lambda game: game.score).seed
            kind = f"-best-of-{best_of}"
        if not filming.film(seed, kind):
            raise KeyboardInterrupt
        return filming.file(seed, kind)

    def _source(self, checkpoint: str) -> Source:
        return playable_source(self.run_dir, checkpoint)
