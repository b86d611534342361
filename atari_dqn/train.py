"""`python -m atari_dqn.train`: flags in, a run directory out.

The order matters: everything the user may have got wrong is checked before torch is imported, a worker starts or a
directory is made. Other programs (the files of `experiments/`) call `main` with their own defaults.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from atari_dqn.cli.command import DONE, INTERRUPTED, CommandFailed, parse_flags, run_command
from atari_dqn.cli.output import open_console
from atari_dqn.config.derived import Derived, derive
from atari_dqn.config.file import load_config
from atari_dqn.config.live import Edit, for_page
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, Setting
from atari_dqn.labml import launch
from atari_dqn.runs.directory import (
    check_run_dir,
    describe_run,
    has_begun,
    new_run_dir,
    read_config,
    seeds_in,
    threads_before,
)
from atari_dqn.runs.edits import Inbox, recorded_edits
from atari_dqn.runs.lock import check_not_training, locked
from atari_dqn.system.machine import is_out_of_memory
from atari_dqn.system.signals import StopRequest

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from atari_dqn.envs.protocol import EnvSpec


SEEDS = Setting("train so many seeds, from --seed on, each in a directory of its own in --run-dir", "runs", 1, 1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainCommand(TrainConfig):
    """Train a prioritized, dueling, double DQN from many worker processes.

    Each flag tells its meaning and, in brackets, its unit, bounds and source. Stop with Ctrl-C: the state is saved,
    and the same command with the same --run-dir goes on.
    """

    config: Annotated[Path | None, tyro.conf.arg(help="a former run's config.json; flags override it")] = None
    init_from: Annotated[
        Path | None, tyro.conf.arg(help="start from the weights of this checkpoint directory or learner.pt")
    ] = None
    labml_url: Annotated[
        str | None, tyro.conf.arg(help="report to the labml server at this URL, such as http://127.0.0.1:5005/api/v1")
    ] = None
    dashboard: Annotated[
        bool,
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.arg(help="report to the local dashboard; if none runs, start one that ends with the run"),
    ] = False
    replay_edits: Annotated[
        Path | None,
        tyro.conf.arg(help="repeat the edits in another run's hparam_edits.jsonl at their env steps"),
    ] = None
    seeds: Annotated[int, SEEDS, tyro.conf.arg(help=SEEDS.describe())] = 1


def main(
    argv: Sequence[str] | None = None, default: TrainConfig | None = None, prog: str = "python -m atari_dqn.train"
) -> int:
    """Train as the flags say. Returns the exit code; raises `ConfigError` for bad input.

    A SIGINT or SIGTERM before there is anything to save raises `KeyboardInterrupt`.
    """
    with StopRequest() as stop:
        return _main(_parse(argv, default or TrainConfig(), prog), stop)


def _main(command: TrainCommand, stop: StopRequest) -> int:
    config = TrainConfig(**{field.name: getattr(command, field.name) for field in dataclasses.fields(TrainConfig)})
    config.validate()
    SEEDS.check("seeds", command.seeds)
    run_dir = _expanded(config.run.run_dir) if config.run.run_dir else new_run_dir(config, command.seeds)
    check_not_training(run_dir)  # before all else: whoever starts a run twice is to hear of it at once

    from atari_dqn.envs.film import check_drawable
    from atari_dqn.envs.make import env_spec, resolve_env_id
    from atari_dqn.envs.protocol import PROTOCOLS
    from atari_dqn.workers.shared_memory import block_bytes, room_fault

    config = config.replace(env_id=resolve_env_id(config.env.env_id))
    spec = env_spec(config.env.env_id, PROTOCOLS[config.env.protocol], config.env.frame_stack)
    derived = derive(config, spec.frame_bytes, spec.stack)
    if config.run.record_interval:
        check_drawable(spec)
    if command.init_from is not None and not command.init_from.exists():
        raise ConfigError(f"--init-from {command.init_from} does not exist")
    labml_url = _labml_url(command)
    repeated = recorded_edits(command.replay_edits) if command.replay_edits else []
    if command.seeds > 1:
        from atari_dqn.training.multi_seed import train_seeds

        if command.dashboard:
            raise ConfigError("--dashboard is one run's own; start python -m atari_dqn.dashboard and give --labml-url")
        given = {name: getattr(command, name) for name in ("init_from", "labml_url", "replay_edits")}
        flags = {name: str(value) for name, value in given.items() if value is not None}
        return train_seeds(config, derived, run_dir, stop, seeds=command.seeds, flags=flags)
    changed = check_run_dir(config, run_dir)
    stop.check()
    console = open_console()
    console.print(_summary(config, derived, run_dir), highlight=False)
    for line in changed:
        console.print(line, highlight=False, soft_wrap=True)
    from atari_dqn.agent.device import check_memory

    if fault := room_fault(block_bytes(derived.num_envs, spec.frame_shape, spec.frame_dtype)):
        raise ConfigError(fault)
    check_memory(config, derived.replay_bytes)
    stop.check()
    began = time.time_ns()
    with locked(run_dir):
        Inbox(run_dir).clear(before=began)  # what is asked from now on, while things load, is asked of us
        with _dashboard(command, console, stop):
            try:
                return _train(config, spec, run_dir, command.init_from, repeated, labml_url, console, stop)
            except (MemoryError, RuntimeError, OSError) as error:
                if not is_out_of_memory(error):
                    raise
                raise CommandFailed(
                    f"out of memory ({str(error).splitlines()[0] if str(error) else type(error).__name__}); lower"
                    f" --batch-size to go on in {run_dir}, or --replay-capacity and the number of envs in a new run"
                ) from None


def _train(
    config: TrainConfig,
    spec: EnvSpec,
    run_dir: Path,
    init_from: Path | None,
    repeated: list[Edit],
    labml_url: str | None,
    console: Console,
    stop: StopRequest,
) -> int:
    from atari_dqn.agent.device import set_up_torch
    from atari_dqn.labml.link import LabmlLink
    from atari_dqn.monitoring.monitor import Monitor
    from atari_dqn.runs.checkpoints import CheckpointStore
    from atari_dqn.training.session import NotSaved, Training
    from atari_dqn.training.trainer import InexactError, Trainer
    from atari_dqn.workers.pool import WorkerError

    threads = set_up_torch(config)
    trainer, store = Trainer(config, spec), CheckpointStore(run_dir)
    try:
        skipped = trainer.resume(store)
    except ConfigError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:  # whole, and yet not a run's
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"the newest checkpoint in {run_dir} does not fit this run: {error}") from None
    for line in skipped:
        console.print(line, highlight=False, soft_wrap=True)
    if trainer.env_steps:
        console.print(f"continuing {run_dir} at env step {trainer.env_steps:,}", highlight=False, soft_wrap=True)
        before = threads_before(run_dir)
        if config.run.deterministic and before != threads:
            console.print(
                f"{before} torch threads before, {threads} now: from here on the bits are others than with {before}",
                highlight=False,
                soft_wrap=True,
            )
        if init_from is not None:
            console.print("--init-from is left aside: this run has weights of its own", highlight=False)
        if trainer.done:
            reached = trainer.env_steps < config.run.total_env_steps
            setting = "--stop-score" if reached else "--total-env-steps"
            console.print(f"nothing left to do: raise {setting} to go on", highlight=False)
            return DONE
    else:
        if (run_dir / "metrics.jsonl").exists():
            console.print(f"{run_dir} has no checkpoint yet: it begins anew", highlight=False, soft_wrap=True)
        if init_from is not None:
            trainer.init_from(init_from)
    device, precision = trainer.device, trainer.learner.precision
    with _writing(run_dir):
        describe_run(config, run_dir, device=str(device), precision=precision, torch_threads=threads)
    began_at = trainer.env_steps
    title = f"{config.env.env_id} · {device} {precision}"
    link = None
    if labml_url is not None:
        values = for_page(trainer.live.values)
        link = LabmlLink(
            labml_url,
            name=run_dir.name,
            config=config.to_dict(),
            live={live: values[name] for name, live in trainer.live.settings.items()},
            repository=Path(__file__).parent,
            env_step=began_at,
        )
        page = labml_url.removesuffix(launch.API)
        console.print(f"watch and tune at {page}/run/{link.uuid}", highlight=False, soft_wrap=True)
    with _writing(run_dir):
        monitor = Monitor(
            run_dir, console, title, config.run.total_env_steps, began_at, link, config.learner.learning_starts
        )
    try:
        with _writing(run_dir):
            training = Training(trainer, run_dir, monitor, stop.asked, repeated)
        done = training.run()
    except (NotSaved, InexactError, FloatingPointError) as error:
        raise CommandFailed(str(error)) from None
    except WorkerError as error:
        whence = f"\n{run_dir} can be continued from its newest checkpoint" if store.steps() else ""
        raise CommandFailed(f"{error}{whence}") from None
    finally:
        monitor.close()
    if done:
        reached = trainer.env_steps < config.run.total_env_steps
        why = f"a mean score of {config.run.stop_score:g} or more reached at " if reached else ""
        console.print(f"done: {why}{trainer.env_steps:,} env steps in {run_dir}", highlight=False, soft_wrap=True)
        return DONE
    saved = "state saved" if trainer.env_steps > began_at else "nothing done yet"
    console.print(
        f"stopped at env step {trainer.env_steps:,}, {saved}; to go on, give --run-dir {run_dir}",
        highlight=False,
        soft_wrap=True,
    )
    return INTERRUPTED


@contextlib.contextmanager
def _writing(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CommandFailed(f"{error.filename or run_dir} cannot be written: {error.strerror}") from None


def _labml_url(command: TrainCommand) -> str | None:
    """Where to report, if anywhere. Raises `ConfigError` for a URL that is none."""
    from atari_dqn.labml.http import check_url

    if command.dashboard:
        if command.labml_url is not None:
            raise ConfigError("--dashboard and --labml-url both say where to report; give one of them")
        return f"http://127.0.0.1:{launch.PORT}{launch.API}"
    return None if command.labml_url is None else check_url(command.labml_url)


@contextlib.contextmanager
def _dashboard(command: TrainCommand, console: Console, stop: StopRequest) -> Iterator[None]:
    """The local dashboard, for `--dashboard`: one that runs already is left running, one begun here ends with us."""
    if not command.dashboard:
        yield
        return
    url = f"http://127.0.0.1:{launch.PORT}"
    with contextlib.ExitStack() as stack:
        if not launch.running(url):
            try:
                with stop.breaking():
                    server = stack.enter_context(contextlib.closing(launch.start(launch.PORT)))
            except ConfigError as error:
                # What it advises are flags of its own.
                raise ConfigError(f"{error} [python -m atari_dqn.dashboard; then train --labml-url]") from None
            for line in server.said:
                console.print(line, highlight=False, soft_wrap=True)
        yield


def _parse(argv: Sequence[str] | None, default: TrainConfig, prog: str) -> TrainCommand:
    # Whose settings they are has to be known before the flags are read, since they override them.
    scan = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    scan.add_argument("--config", type=Path, nargs="?")
    scan.add_argument("--run-dir", "--run_dir", type=Path, nargs="?", default=default.run.run_dir)
    given = scan.parse_known_args(argv)[0]
    if given.config is not None:
        # The former run's directory stays its own: only its settings are wanted.
        default = load_config(given.config).replace(run_dir=None)
    elif given.run_dir is not None and has_begun(_expanded(given.run_dir)):
        default = read_config(_expanded(given.run_dir)).replace(run_dir=given.run_dir)
    elif given.run_dir is not None and (begun := seeds_in(_expanded(given.run_dir))):
        default = read_config(begun[0]).replace(run_dir=given.run_dir)
    sections = {field.name: getattr(default, field.name) for field in dataclasses.fields(default)}
    return parse_flags(TrainCommand, argv, prog=prog, default=TrainCommand(**sections))


def _expanded(run_dir: Path) -> Path:
    """With `~` in full, where no shell has done it: `--run-dir=~/run`."""
    try:
        return run_dir.expanduser()
    except RuntimeError:
        raise ConfigError(f"--run-dir {run_dir}: there is no user of that name") from None


def _summary(config: TrainConfig, derived: Derived, run_dir: Path) -> Table:
    """The derived counts, for the start of a run."""
    from rich.table import Table

    def knots(pairs: tuple[tuple[float, float], ...]) -> str:
        return " → ".join(f"{value:g} at {at:,.0f}" for at, value in pairs)

    per_update = f"one per {float(derived.env_steps_per_update):g} env steps"
    if not derived.total_updates:
        per_update = "[none in so short a run]"
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_row("run", str(run_dir))
    table.add_row("env", f"{config.env.env_id}, {config.env.num_workers} workers × {config.env.envs_per_worker} envs")
    table.add_row("length", f"{config.run.total_env_steps:,} env steps, {derived.total_updates:,} updates")
    table.add_row(
        "replay",
        f"{config.replay.replay_capacity:,} transitions × {derived.bytes_per_transition:,.0f} bytes"
        f" = {derived.replay_bytes / 1e6:,.0f} MB",
    )
    table.add_row(
        "updates",
        f"{per_update} from env step {config.learner.learning_starts:,} on;"
        f" target every {config.learner.target_update_interval:,} updates"
        f" = {float(derived.target_sync_env_steps):,.0f} env steps",
    )
    epsilon = f"{knots(derived.epsilon_knots)} env steps"
    if config.exploration.epsilon_decay:
        first, last = config.exploration.epsilon_values
        epsilon = f"{first:g} → {last:g}, {config.exploration.epsilon_decay:,.0f} env steps to 1/e of the way"
    ladder = f"0.4 to {0.4**8:.2g}, one for each of {derived.num_envs} envs"
    table.add_row("epsilon", ladder if config.exploration.epsilon_ladder else epsilon)
    table.add_row("beta", f"{knots(derived.beta_knots)} env steps")
    return table


if __name__ == "__main__":
    run_command(main)
