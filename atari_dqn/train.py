"""The command `python -m atari_dqn.train`.

The order matters: all input is checked before torch is imported, a worker starts or a directory is made. The files of
`experiments/` call `main` with their own defaults.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from atari_dqn.cli.command import DONE, CommandFailed, run_command
from atari_dqn.cli.output import open_console, say
from atari_dqn.config.derived import Derived, derive
from atari_dqn.config.objects import remember
from atari_dqn.config.presets import ABOUT
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, Setting, help_from_settings, settings
from atari_dqn.labml import launch
from atari_dqn.monitoring.views import Row, result_of
from atari_dqn.runs.directory import check_run_dir, is_run_dir, named, new_run_dir
from atari_dqn.runs.edits import Inbox, recorded_edits
from atari_dqn.runs.lock import locked
from atari_dqn.system.machine import is_out_of_memory
from atari_dqn.system.signals import StopRequest
from atari_dqn.training.beginning import Beginning, parse_training

if TYPE_CHECKING:
    from rich.console import Console

    from atari_dqn.distributed.cluster import Cluster
    from atari_dqn.envs.protocol import EnvSpec
    from atari_dqn.training.session import Metrics


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainCommand(Beginning):
    """Train a prioritized, dueling, double DQN from many worker processes.

    Each flag shows its meaning and, in brackets, its unit, bounds and source. Stop with Ctrl-C: the state is saved, and
    the same command with the same --run-dir resumes.
    """

    init_from: Annotated[
        Path | None, Setting("start from the weights of this run, checkpoint directory or learner.safetensors")
    ] = None
    labml_url: Annotated[
        str | None, Setting("report to the labml server at this URL, such as http://127.0.0.1:5005/api/v1")
    ] = None
    dashboard: Annotated[
        bool,
        tyro.conf.FlagCreatePairsOff,
        Setting("report to the local dashboard; if none runs, start one that ends with the run"),
    ] = False
    wandb: Annotated[
        bool,
        tyro.conf.FlagCreatePairsOff,
        Setting("report to Weights & Biases, or with WANDB_MODE=offline to RUN/wandb; a resumed run continues there"),
    ] = False
    replay_edits: Annotated[
        Path | None,
        Setting("another run, or its hparam_edits.jsonl, whose edits are repeated at their env steps"),
    ] = None
    cluster: Annotated[
        str | None,
        Setting(
            "spread the workers over the nodes of a Ray cluster: HOST:PORT of its head, auto for the one that this"
            " machine is a node of, or local to start one here"
        ),
    ] = None
    seeds: Annotated[
        int, Setting("number of seeds to train from --seed on, each in its own directory in --run-dir", "runs", 1, 1000)
    ] = 1
    show_result: Annotated[
        bool,
        Setting(
            "at the end draw the learning curve, film 12 seconds and name the next commands; off too where the"
            " environment has ATARI_DQN_SHOW_RESULT=0"
        ),
    ] = True


def main(
    argv: Sequence[str] | None = None, default: TrainConfig | None = None, prog: str = "python -m atari_dqn.train"
) -> int:
    """Train as the flags say. Returns the exit code; raises `ConfigError` for bad input.

    A SIGINT or SIGTERM before there is anything to save raises `KeyboardInterrupt`.
    """
    with StopRequest() as stop:
        command, console = parse_training(TrainCommand, argv, prog, default), open_console()
        code, run_dir = result_of(rows(command, stop, console))
    shown = command.show_result and os.environ.get("ATARI_DQN_SHOW_RESULT") != "0" and command.seeds == 1
    if shown and stop.signal in (None, signal.SIGINT):  # one who ends the terminal or the machine does not wait
        from atari_dqn.ending.ending import conclude

        with StopRequest() as skip:
            conclude(run_dir, console, code == DONE, skip.asked)
    return code


def rows(
    command: TrainCommand, stop: StopRequest, console: Console, metrics: Metrics | None = None
) -> Generator[Row, None, tuple[int, Path]]:
    """Train as `command` says and yield every row of metrics; `metrics` returns further ones.

    Returns the exit code and the run's directory. Raises `ConfigError` for bad input, and
    `KeyboardInterrupt` for a stop before there is anything to save.
    """
    asked = command.settings().validate()
    given = asked.run.run_dir
    if command.init_from is not None and not (given and is_run_dir(given)):
        named(command.init_from, "latest", takes="run weights file", prefix="--init-from ")
    from atari_dqn.envs.make import resolve_env

    config, spec = resolve_env(asked)
    derived = derive(config, spec.frame_bytes)
    if command.wandb and find_spec("wandb") is None:
        raise ConfigError('--wandb: wandb is not installed; try pip install "atari_dqn[wandb]"')
    labml_url = _labml_url(command)
    repeated = recorded_edits(command.replay_edits) if command.replay_edits else []
    with contextlib.nullcontext(given) if given else new_run_dir(asked, command.seeds) as run_dir:
        if command.seeds > 1:
            return _train_seeds(command, config, spec, run_dir, stop), run_dir
        changed = check_run_dir(config, run_dir)
        stop.check()
        began = time.time_ns()
        with _cluster(command, config, console, stop) as cluster, locked(run_dir):
            remember(run_dir, config)
            from atari_dqn.training.summary import exploration_warning, image_warning, summary

            resumes, preset = is_run_dir(run_dir), ""
            if command.preset not in ("auto", "paper") and not resumes:
                preset = f"{command.preset}: {ABOUT[command.preset]}; --preset begins with others"
            console.print(summary(config, spec, derived, run_dir, preset), highlight=False)
            if command.preset != "auto" and resumes:
                say(console, "--preset ignored: this run already has settings")
            for line in (*changed, *image_warning(spec), *exploration_warning(config, derived)):
                say(console, line, wrap=True)
            if command.replay_edits and not repeated:
                say(console, f"--replay-edits {command.replay_edits} has no edit to repeat")
            check_room(config, spec, derived)
            stop.check()
            with _dashboard(command, console, stop), _out_of_memory_explained(run_dir):
                Inbox(run_dir).clear(before=began)  # requests from now on, while things load, are for this run
                from atari_dqn.training import start

                run = start.Run(run_dir, command.init_from, repeated, labml_url, command.wandb, metrics=metrics)
                if cluster is not None:
                    from atari_dqn.distributed.assembly import cluster_parts

                    run = dataclasses.replace(run, parts=partial(cluster_parts, cluster), cluster=command.cluster)
                return (yield from start.rows(config, spec, run, console, stop.asked)), run_dir


def check_room(config: TrainConfig, spec: EnvSpec, derived: Derived) -> None:
    """Raise `ConfigError` unless shared memory and memory suffice. Imports torch."""
    from atari_dqn.workers.shared_memory import block_bytes, room_fault

    if fault := room_fault(block_bytes(derived.num_envs, spec.frame_shape, spec.frame_dtype)):
        raise ConfigError(fault)
    from atari_dqn.agent.device import check_memory

    check_memory(config, derived.replay_bytes)


def _train_seeds(command: TrainCommand, config: TrainConfig, spec: EnvSpec, run_dir: Path, stop: StopRequest) -> int:
    from atari_dqn.sweeps.members import Member
    from atari_dqn.sweeps.session import train_seeds

    if command.cluster:
        raise ConfigError("--cluster is for a single run; try python -m atari_dqn.sweep --cluster with --seeds")
    if command.wandb:
        raise ConfigError("--wandb is for a single run; start each seed as a run of its own")
    if command.dashboard:
        raise ConfigError("--dashboard is for a single run; start python -m atari_dqn.dashboard and give --labml-url")
    seeds = range(config.run.seed, config.run.seed + command.seeds)
    if fault := settings(TrainConfig)["seed"].fault(seeds[-1]):
        raise ConfigError(f"--seeds {command.seeds}: the last seed {fault}")
    given = {name: getattr(command, name) for name in ("init_from", "labml_url", "replay_edits")}
    flags = {name: str(value) for name, value in given.items() if value is not None}
    members = [Member(f"seed-{seed}", config.replace(seed=seed, run_dir=None)) for seed in seeds]
    return train_seeds(members, dict.fromkeys([member.name for member in members], spec), run_dir, stop, flags)


@contextlib.contextmanager
def _out_of_memory_explained(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise CommandFailed(
            f"out of memory ({str(error).splitlines()[0] if str(error) else type(error).__name__}); lower --batch-size"
            f" to resume {run_dir}, or --replay-capacity and the number of environments in a new run"
        ) from None


def _labml_url(command: TrainCommand) -> str | None:
    """The labml server to report to, if any. Raises `ConfigError` for a malformed URL."""
    from atari_dqn.labml.http import API, check_url

    if command.dashboard:
        if command.labml_url is not None:
            raise ConfigError("--dashboard and --labml-url both say where to report; give one of them")
        return f"http://127.0.0.1:{launch.PORT}{API}"
    return None if command.labml_url is None else check_url(command.labml_url)


@contextlib.contextmanager
def _cluster(
    command: TrainCommand, config: TrainConfig, console: Console, stop: StopRequest
) -> Iterator[Cluster | None]:
    """For `--cluster`, the cluster to which this process is connected while it trains."""
    if command.cluster is None:
        yield None
        return
    from atari_dqn.distributed.cluster import connected

    with contextlib.ExitStack() as stack:
        with stop.breaking():
            cluster = stack.enter_context(connected(command.cluster, config.env, partial(say, console)))
        yield cluster


@contextlib.contextmanager
def _dashboard(command: TrainCommand, console: Console, stop: StopRequest) -> Iterator[None]:
    """For `--dashboard`, the local dashboard: one that already runs is left running, one started here ends with us."""
    if not command.dashboard or launch.running(f"http://127.0.0.1:{launch.PORT}"):
        yield
        return
    try:
        with stop.breaking():
            server = launch.start(launch.PORT)
    except ConfigError as error:  # its advice names flags of its own
        raise ConfigError(f"{error} [python -m atari_dqn.dashboard; then train --labml-url]") from None
    with contextlib.closing(server):
        for line in server.said:
            say(console, line)
        yield


if __name__ == "__main__":
    run_command(main)
