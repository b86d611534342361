"""Members of a sweep: one run each, as a separate `python -m atari_dqn.train` that can be started, watched and stopped.

A member's state is its run directory alone: it is done when its newest checkpoint has all env steps, and starting it
again resumes it. So it does not matter which process, or which machine, started it before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from atari_dqn.cli.command import INTERRUPTED, CommandFailed
from atari_dqn.config.derived import RUN_BYTES, derive
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, flag
from atari_dqn.envs.ids import is_atari
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.runs.directory import check_run_dir, checkpoints_in, is_run_dir, read_config
from atari_dqn.runs.lock import check_not_training
from atari_dqn.system.processes import hang_up_after_parent
from atari_dqn.system.signals import StopRequest

STOPPED = (INTERRUPTED, -signal.SIGTERM)
"""Exit codes of a stopped run; the second one if it was stopped before its signal handlers were installed."""
TAIL = 65_536
"""Bytes at the end of a record in which its newest row is looked for; a row has about 1,500."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    name: str
    """Its directory within the sweep's: `Breakout-n_step-3/seed-1`, or `seed-1` for one of `train --seeds`."""
    config: TrainConfig
    """Its settings, without a run directory"""

    @property
    def label(self) -> str:
        """The name for people: `Breakout-n_step-3 seed 1`."""
        return self.name.replace("/seed-", " seed ").replace("seed-", "seed ")

    def run_dir(self, root: Path) -> Path:
        return root / self.name

    def log(self, root: Path) -> Path:
        """The file that takes what the run prints."""
        return (root / self.name).parent / f"output-{self.config.run.seed}.txt"  # not `seed-*`, which names only runs


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is, by its newest row of metrics."""

    env_step: int = 0
    score: float | None = None
    """Mean raw score of the last 100 games of training"""
    steps_per_second: float = 0.0


NO_PROGRESS = Progress()


def is_done(member: Member, root: Path) -> bool:
    """Whether a member has a checkpoint with all its env steps. Never raises."""
    with contextlib.suppress(OSError):
        return max(checkpoints_in(member.run_dir(root)), default=0) >= member.config.run.total_env_steps
    return False


def progress(run_dir: Path) -> Progress:
    """Read the newest row of `run_dir`, complete or not yet there; without one there is no progress. Never raises."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        with (run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(-min(TAIL, file.seek(0, os.SEEK_END)), os.SEEK_END)
            lines = file.read().splitlines(keepends=True)
        row = json.loads([line for line in lines if line.endswith(b"\n")][-1])
        return Progress(int(row["env_step"]), row.get("charts/episodic_return"), row.get("charts/SPS", 0.0))
    return NO_PROGRESS


def check(members: Sequence[Member], root: Path) -> None:
    """Raise `ConfigError` if a member cannot start or resume, or is being trained by another process."""
    for member in members:
        place = member.run_dir(root)
        check_not_training(place)
        check_run_dir(member.config.replace(run_dir=place), place)


def check_known_elsewhere(env_ids: Iterable[str], stop: StopRequest, what: str) -> None:
    """Raise `ConfigError` for an environment that is registered in this process alone: each run is one of its own.

    Raises `CommandFailed` where a program cannot start. `what` is the flag that asked for several runs.
    """
    for env_id in dict.fromkeys(env_ids):
        if is_atari(env_id):
            continue
        module, _, bare = env_id.rpartition(":")
        command = [sys.executable, "-c", f"import gymnasium, {module or 'sys'}; gymnasium.spec({bare!r})"]
        child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        stop.check()  # a terminal's Ctrl-C ends the child, too
        reason = child.stderr.strip().rpartition("\n")[2] or f"exit code {child.returncode}"
        if child.returncode and reason.startswith("gymnasium.error."):
            raise ConfigError(
                f"{what}: each is a program of its own, which does not know {env_id}; register it in a"
                f" module in this folder and use module:{bare}"
            )
        if child.returncode:
            raise CommandFailed(f"{what}: each is a program of its own, which fails to start: {reason}")


def cores_for(config: TrainConfig, *, on_gpu: bool) -> int:
    """Number of cores that one run can use well.

    On a CPU one core for the learner and one for the environments: two runs with half the threads get further in an
    hour than one after the other. On a GPU the environments take the time, and each worker keeps a core busy.
    """
    from atari_dqn.agent.device import threads_asked

    return config.env.num_workers + 1 if on_gpu else max(2, threads_asked(config))


def memory_for(member: Member, spec: EnvSpec, *, on_gpu: bool) -> int:
    """Bytes of main memory that one run needs with a full replay, which on a GPU lies there."""
    return int(RUN_BYTES) + (0 if on_gpu else derive(member.config, spec.frame_bytes).replay_bytes)


def command(member: Member, root: Path, flags: Mapping[str, str], threads: int = 0) -> list[str]:
    """The command of a member, with flags for what differs from its run's own settings, or from the defaults.

    `flags` are further flags of `train`; `threads` is the number of torch threads, 0 for those of its settings.
    """
    run_dir = member.run_dir(root)
    default, preset = (read_config(run_dir), {}) if is_run_dir(run_dir) else (TrainConfig(), {"preset": "paper"})
    config = member.config.replace(
        run_dir=run_dir,
        torch_threads=threads or member.config.run.torch_threads,
        schedule_env_steps=member.config.run.schedule_env_steps or default.run.schedule_env_steps,
    )
    given = {name: value for name, value in config.to_dict().items() if value != default.to_dict()[name]}
    given |= {**preset, "seed": config.run.seed, "run_dir": str(run_dir), "show_result": False, **flags}
    return [sys.executable, "-m", "atari_dqn.train", *(word for item in given.items() for word in _words(*item))]


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(name if value else f"no_{name}")]
    return [flag(name), *map(str, value if isinstance(value, list) else [value])]


def start(words: Sequence[str], log: Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Start a run in its own session: a terminal's Ctrl-C reaches it once, from us; it stops if we are killed.

    It stops, its state saved, when the thread that called this ends. Raises `CommandFailed` if `log` cannot be written.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        file = log.open("a")
    except OSError as error:
        raise CommandFailed(f"{log} cannot be written: {error.strerror}") from None
    with file:
        return subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=hang_up_after_parent(),
        )


def last_line(log: Path) -> str:
    """The last line of what a run printed; empty if there is none."""
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""
