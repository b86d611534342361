"""`train --seeds N`: one training per seed.

Each is a separate `python -m atari_dqn.train` in RUN_DIR/seed-K, with its output in RUN_DIR/output-K.txt. As many run
at once as cores and memory allow; this process starts them, shows their progress and passes on a request to stop.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atari_dqn.cli.command import DONE, INTERRUPTED, CommandFailed
from atari_dqn.cli.format import duration
from atari_dqn.cli.output import StatusLine, open_console, say
from atari_dqn.config.derived import Derived
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, flag, settings
from atari_dqn.runs.directory import check_run_dir, is_run_dir, read_config
from atari_dqn.runs.lock import check_not_training, locked
from atari_dqn.system.machine import available_memory, cores
from atari_dqn.system.processes import hang_up_after_parent
from atari_dqn.system.signals import StopRequest

if TYPE_CHECKING:
    from rich.console import Console


RUN_BYTES = 1.2e9
"""Bytes of one run besides its replay: 0.7 GB were measured with 8 workers, and saving takes some more"""
LOOK_SECONDS = 0.2
TAIL_BYTES = 16_384
"""More bytes than a row of metrics.jsonl has"""


@dataclasses.dataclass
class Run:
    """The training of one seed."""

    seed: int
    run_dir: Path
    command: Sequence[str]
    total: int
    """Length in env steps"""
    learns_from: int = 0
    """Env step after which a row's pace is that of learning; random play is many times faster"""
    process: subprocess.Popen[bytes] | None = None
    code: int | None = None
    said_before: int = 0
    """Bytes in its log left by an earlier attempt"""

    @property
    def log(self) -> Path:
        return self.run_dir.with_name(f"output-{self.seed}.txt")  # not `seed-*`, which names only runs

    @property
    def state(self) -> str:
        if self.process is None:
            return "waiting"
        if self.code is None:
            return "running"
        if self.code in (INTERRUPTED, -signal.SIGTERM):  # killed before it could handle signals
            return "stopped"
        return "failed" if self.code else "done"

    def start(self) -> None:
        """Start it in its own session: a terminal's Ctrl-C reaches it once, from us; it stops if we are killed."""
        try:
            file = self.log.open("a")
        except OSError as error:
            raise CommandFailed(f"{self.log} cannot be written: {error.strerror}") from None
        self.said_before = file.tell()
        with file:
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
                preexec_fn=hang_up_after_parent(),
            )

    def look(self) -> None:
        """Update whether it has ended."""
        if self.process is not None:
            self.code = self.process.poll()

    def stop(self) -> None:
        if self.process is not None and self.code is None:
            self.process.terminate()

    def row(self) -> dict[str, Any]:
        """Its newest row of metrics; empty before the first."""
        with contextlib.suppress(OSError, ValueError), (self.run_dir / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            whole = file.read().rpartition(b"\n")[0]
            row: dict[str, Any] = json.loads(whole.rpartition(b"\n")[2])
            return row
        return {}

    def reason(self) -> str:
        """Why it failed: the last line of its output."""
        said = self.log.read_bytes()[self.said_before :].decode(errors="replace").strip()
        return said.splitlines()[-1].strip() if said else f"exit code {self.code}"


def train_seeds(
    config: TrainConfig, derived: Derived, run_dir: Path, stop: StopRequest, *, seeds: int, flags: Mapping[str, str]
) -> int:
    """Train `config` with `seeds` seeds, beginning with `config.run.seed`. Returns the exit code.

    Unfinished runs in `run_dir` are resumed. `flags` are further flags of `train`, by name, passed to every run.
    Raises `ConfigError` for bad input before anything starts, and `CommandFailed` at the end, naming the seeds that
    failed.
    """
    first, last = config.run.seed, config.run.seed + seeds - 1
    fault = settings(TrainConfig)["seed"].fault(last)
    if fault:
        raise ConfigError(f"--seeds {seeds}: the last seed {fault}")
    if is_run_dir(run_dir):
        raise ConfigError(f"--run-dir {run_dir} is a single run; name an empty or new directory for several seeds")
    own = {seed: run_dir / f"seed-{seed}" for seed in range(first, last + 1)}
    for seed, place in own.items():
        check_not_training(place)
        check_run_dir(config.replace(seed=seed, run_dir=place), place)
    stop.check()
    from atari_dqn.agent.device import check_memory

    check_memory(config, derived.replay_bytes)
    beside = _beside(config, derived, seeds)
    if beside > 1 and not config.run.torch_threads:
        config = config.replace(torch_threads=max(1, cores() // beside))
    total, learning_starts = config.run.total_env_steps, config.learner.learning_starts
    learns_from = min(learning_starts + config.run.log_interval, total) if learning_starts < total else 0
    runs = [Run(seed, place, _command(config, seed, place, flags), total, learns_from) for seed, place in own.items()]
    console = open_console()
    how = f"{beside} at a time" if beside > 1 else "one at a time"
    say(
        console,
        f"{config.env.env_id}, seeds {first} to {last}, {how} ({cores()} cores,"
        f" {available_memory() / 1e9:.1f} GB free), each in {run_dir}/seed-K, output in output-K.txt",
    )
    stop.check()
    with locked(run_dir):
        _train_all(runs, beside, stop, console)
    return _end(runs, run_dir, console)


def _beside(config: TrainConfig, derived: Derived, seeds: int) -> int:
    """How many runs to have at once: each needs cores it can use well, and memory for a full replay.

    On a CPU that is one core for the learner and one for the environments: two runs with half the threads get further
    in an hour than one after the other, since threads that share a small update wait for each other. On a GPU the
    environments take the time, and each worker keeps a core busy.
    """
    import torch

    from atari_dqn.agent.device import resolve_device

    device = resolve_device(config.run.device)
    if device.type == "cpu":
        by_cores = cores() // max(2, config.run.torch_threads)
        by_memory = available_memory() / (derived.replay_bytes + RUN_BYTES)
    else:
        by_cores = cores() // (config.env.num_workers + 1)
        of_gpu = torch.cuda.mem_get_info(device)[0] / (derived.replay_bytes + RUN_BYTES)
        by_memory = min(of_gpu, available_memory() / RUN_BYTES)
    return max(1, min(seeds, by_cores, int(by_memory)))


def _command(config: TrainConfig, seed: int, run_dir: Path, flags: Mapping[str, str]) -> list[str]:
    """The command of one seed; its flags are what differs from that run's own settings, or from the defaults."""
    default = read_config(run_dir) if is_run_dir(run_dir) else TrainConfig()
    asked = config.replace(seed=seed, run_dir=run_dir).to_dict()
    given = {name: value for name, value in asked.items() if value != default.to_dict()[name]}
    given |= {"seed": seed, "run_dir": str(run_dir), **flags}
    return [sys.executable, "-m", "atari_dqn.train", *(word for item in given.items() for word in _words(*item))]


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(name if value else f"no_{name}")]
    return [flag(name), *map(str, value if isinstance(value, list) else [value])]


def _train_all(runs: list[Run], beside: int, stop: StopRequest, console: Console) -> None:
    told = False
    try:
        with StatusLine(console, "starting") as status:
            while any(run.state == "running" or (run.state == "waiting" and not told) for run in runs):
                if stop.asked() and not told:
                    told = True
                    say(console, "stopping as soon as every run has saved its state")
                    for run in runs:
                        run.stop()
                waiting = [run for run in runs if run.state == "waiting"]
                if waiting and not told and sum(run.state == "running" for run in runs) < beside:
                    waiting[0].start()
                status.update(_line(runs, beside))
                time.sleep(LOOK_SECONDS)
                for run in runs:
                    run.look()
    finally:
        for run in runs:
            run.stop()


def _line(runs: list[Run], beside: int) -> str:
    def one(run: Run) -> str:
        row = run.row()
        if not row or run.state == "waiting":
            return f"seed {run.seed} {run.state if run.state != 'running' else 'starting'}"
        share = f"{row['env_step'] / run.total:.0%}" if run.state == "running" else run.state
        score = _score(row)
        return f"seed {run.seed} {share}{score and f' score {score}'}"

    return "  ".join([*map(one, runs), f"ETA {_eta(runs, beside)}"])


def _score(row: dict[str, Any]) -> str:
    """Mean score of the last games; empty before the first game has ended."""
    score, human = (row.get(f"charts/{name}") for name in ("episodic_return", "human_normalized"))
    return "" if score is None else f"{score:.2f}" + ("" if human is None else f" (human {human:.2f})")


def _eta(runs: list[Run], beside: int) -> str:
    """Time until all are done, at the mean pace of those that are learning."""
    rows = [(run, run.row()) for run in runs]
    learn = [row for run, row in rows if run.state != "waiting" and row.get("env_step", 0) >= run.learns_from]
    paces = [row["charts/SPS"] for row in learn if row.get("charts/SPS")]
    left = sum(run.total - row.get("env_step", 0) for run, row in rows if run.state in ("waiting", "running"))
    return duration(max(0, left) * len(paces) / sum(paces) / beside) if paces else "..."


def _end(runs: list[Run], run_dir: Path, console: Console) -> int:
    """Print how each has ended. Returns the exit code; raises `CommandFailed` if one failed and none was stopped."""
    for run in runs:
        reason = f": {run.reason()} ({run.log})" if run.state == "failed" else ""
        steps = f" at env step {run.row().get('env_step', 0):,}" if run.state != "waiting" else ""
        say(console, f"seed {run.seed} {run.state}{steps}{reason}")
    failed = [str(run.seed) for run in runs if run.state == "failed"]
    if any(run.state in ("stopped", "waiting") for run in runs):
        # A resume takes its settings from a run that has started.
        begun = any(is_run_dir(run.run_dir) for run in runs)
        how = f"--run-dir {shlex.quote(str(run_dir))} --seed {runs[0].seed} --seeds {len(runs)}"
        say(
            console,
            f"stopped, state saved; resume with {how}"
            if begun
            else "stopped, nothing to save; run the same command again",
        )
        return INTERRUPTED
    say(console, f"to compare: python -m atari_dqn.compare {shlex.quote(str(run_dir))}/seed-*")
    if failed:
        raise CommandFailed(
            f"of {len(runs)} seeds these failed: {', '.join(failed)}; the same command tries them again"
        )
    return DONE
