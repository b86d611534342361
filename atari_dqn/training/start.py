"""Starting, running and ending a training in its run directory, as `train` does once the input is checked."""

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from atari_dqn.agent.device import set_up_torch, threads_asked, threads_by_default
from atari_dqn.cli.command import DONE, INTERRUPTED, CommandFailed
from atari_dqn.cli.output import say
from atari_dqn.config.live import Edit, for_page
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.labml.http import API
from atari_dqn.labml.link import LabmlLink
from atari_dqn.monitoring.monitor import Monitor
from atari_dqn.monitoring.views import Row
from atari_dqn.monitoring.weights_and_biases import WeightsAndBiases
from atari_dqn.runs.checkpoints import CheckpointStore
from atari_dqn.runs.directory import describe_run, read_system
from atari_dqn.system.machine import is_out_of_memory
from atari_dqn.training.assembly import local_parts
from atari_dqn.training.parts import Parts
from atari_dqn.training.session import Metrics, Session
from atari_dqn.training.snapshot import NotSaved, Resumed, init_from, resume
from atari_dqn.training.summary import above_random
from atari_dqn.training.threads import ThreadChoice
from atari_dqn.training.trainer import InexactError, Trainer
from atari_dqn.workers.pool import WorkerError


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run is given besides its settings."""

    run_dir: Path
    init_from: Path | None = None
    repeated: Sequence[Edit] = ()
    """Another run's live edits, to be made at the same env steps"""
    labml_url: str | None = None
    wandb: bool = False
    parts: Callable[[TrainConfig, EnvSpec], Parts] = local_parts
    """Makes what the trainer is made of"""
    cluster: str | None = None
    """Address of the Ray cluster whose nodes have the workers"""
    metrics: Metrics | None = None


def rows(
    config: TrainConfig, spec: EnvSpec, run: Run, console: Console, should_stop: Callable[[], bool]
) -> Generator[Row, None, int]:
    """Train in `run.run_dir`, which the caller has locked, until done or stopped, and yield every row of metrics.

    Returns the exit code. When the generator is closed, the state is saved. Raises `ConfigError` where what is stored
    does not fit, and `CommandFailed` with the reason for any other end.
    """
    trainer, resumed = open_run(config, spec, run, console)
    if trainer.done:
        by_score = trainer.env_steps < config.run.total_env_steps
        remedy = "raise --stop-score, or give None," if by_score else "raise --total-env-steps"
        say(console, f"nothing left to do: {remedy} to continue")
        return DONE
    began_at = trainer.env_steps
    with _writing(run.run_dir):
        monitor = connect(trainer, config, run, console)
    most = threads_by_default(spec.kind)
    by_pace = trainer.device.type == "cpu" and most > 1 and not (config.run.deterministic or threads_asked(config))
    choice = ThreadChoice(most) if by_pace else None
    try:
        with _writing(run.run_dir):
            session = Session(trainer, run.run_dir, monitor, should_stop, run.repeated, resumed, choice, run.metrics)
        done = yield from session.rows()
    except (NotSaved, InexactError, FloatingPointError) as error:
        raise CommandFailed(str(error)) from None
    except WorkerError as error:
        resumable = CheckpointStore(run.run_dir).steps()
        hint = f"\n{run.run_dir} can be resumed from its newest checkpoint" if resumable else ""
        raise CommandFailed(f"{error}{hint}") from None
    finally:
        monitor.close()
    if done:
        reached = trainer.env_steps < config.run.total_env_steps
        why = f"a mean score of {config.run.stop_score:g} or more reached at " if reached else ""
        say(console, f"done: {why}{trainer.env_steps:,} env steps in {run.run_dir}")
        return DONE
    saved = "state saved" if trainer.env_steps > began_at else "nothing to save"
    how = f"--run-dir {run.run_dir}" + (f" --cluster {run.cluster}" if run.cluster else "")
    say(console, f"stopped at env step {trainer.env_steps:,}, {saved}; resume with {how}", wrap=True)
    return INTERRUPTED


def open_run(config: TrainConfig, spec: EnvSpec, run: Run, console: Console) -> tuple[Trainer, Resumed]:
    """Make the trainer, resume it or load its first weights, and describe the run in its directory."""
    before = read_system(run.run_dir).get("torch_threads")
    threads = set_up_torch(config, spec.kind, before)
    trainer = Trainer(config, spec, run.parts(config, spec))
    try:
        resumed = resume(trainer, CheckpointStore(run.run_dir))
    except ConfigError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:  # valid, yet not this run's
        if is_out_of_memory(error):
            raise
        raise ConfigError(f"the newest checkpoint in {run.run_dir} does not fit this run: {error}") from None
    for line in resumed.notes:
        say(console, line, wrap=True)
    if trainer.env_steps:
        say(console, f"resuming {run.run_dir} at env step {trainer.env_steps:,}")
        if config.run.deterministic and before != threads:
            say(
                console,
                f"{before} torch threads before, {threads} now: results are no longer bit-identical to the first part"
                " of the run",
                wrap=True,
            )
        if run.init_from is not None:
            say(console, "--init-from ignored: this run already has weights")
    else:
        if (run.run_dir / "metrics.jsonl").exists():
            say(console, f"no checkpoint found in {run.run_dir}; starting from scratch")
        if run.init_from is not None:
            init_from(trainer, run.init_from)
    if not trainer.done:
        with _writing(run.run_dir):
            precision = trainer.learner.precision
            describe_run(config, run.run_dir, device=str(trainer.device), precision=precision, torch_threads=threads)
    return trainer, resumed


def connect(trainer: Trainer, config: TrainConfig, run: Run, console: Console) -> Monitor:
    """The monitor, with the dashboard's page if there is one. Raises `OSError` where files cannot be written.

    `config` has the settings before live edits.
    """
    page = None
    if run.labml_url is not None:
        values = for_page(trainer.live.values)
        page = LabmlLink(
            run.labml_url,
            name=run.run_dir.name,
            config=config.to_dict(),
            live={live: values[name] for name, live in trainer.live.settings.items()},
            env_step=trainer.env_steps,
        )
        say(console, f"watch and tune at {run.labml_url.removesuffix(API)}/run/{page.uuid}")
    title = f"{config.env.env_id} · {trainer.device} {trainer.learner.precision}"
    total, learning_starts = config.run.total_env_steps, config.learner.learning_starts
    settings: dict[str, Any] = config.to_dict()
    for name, value in settings.items():
        if isinstance(value, str):  # a path may have bytes that are not UTF-8
            settings[name] = value.encode(errors="replace").decode()
    further = [WeightsAndBiases(run.run_dir, settings, partial(say, console))] if run.wandb else []
    return Monitor(
        run.run_dir,
        console,
        title,
        total,
        trainer.env_steps,
        page,
        learning_starts,
        expected=above_random(config),
        settings=settings,
        further=further,
    )


@contextlib.contextmanager
def _writing(run_dir: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CommandFailed(f"{error.filename or run_dir} cannot be written: {error.strerror}") from None
