"""`train --seeds N`: one training per seed.

Each is a separate `python -m atari_dqn.train` in RUN_DIR/seed-K, with its output in RUN_DIR/output-K.txt. As many run
at once as cores and memory allow; this process starts them, waits for them and passes on a request to stop.
"""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atari_dqn.cli.command import DONE, INTERRUPTED, CommandFailed
from atari_dqn.cli.output import open_console, say
from atari_dqn.config.derived import Derived
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, flag, settings
from atari_dqn.envs.ids import is_atari
from atari_dqn.runs.directory import check_run_dir, is_run_dir, read_config
from atari_dqn.runs.lock import check_not_training, locked
from atari_dqn.system.machine import available_memory, cores
from atari_dqn.system.processes import hang_up_after_parent
from atari_dqn.system.signals import StopRequest
from atari_dqn.training.summary import exploration_warning

if TYPE_CHECKING:
    from rich.console import Console

RUN_BYTES = 1.2e9
"""Memory of one run without its replay, in bytes: 0.7 GB were measured with 8 workers, and saving takes some more."""
LOOK_SECONDS = 0.2
"""Seconds between two looks at the running processes."""
STOPPED = (INTERRUPTED, -signal.SIGTERM)
"""Exit codes of a stopped run; the second one if it was stopped before its signal handlers were installed."""


def train_seeds(
    config: TrainConfig,
    derived: Derived,
    run_dir: Path,
    stop: StopRequest,
    *,
    kind: str,
    seeds: int,
    flags: Mapping[str, str],
) -> int:
    """Train `config` with `seeds` seeds, beginning with `config.run.seed`. Returns the exit code.

    Unfinished runs in `run_dir` are resumed. `kind` is the kind of observation; `flags` are further flags of `train`.
    Raises `ConfigError` before anything starts, and `CommandFailed` at the end, naming the seeds that failed.
    """
    first, last = config.run.seed, config.run.seed + seeds - 1
    if fault := settings(TrainConfig)["seed"].fault(last):
        raise ConfigError(f"--seeds {seeds}: the last seed {fault}")
    if is_run_dir(run_dir):
        raise ConfigError(f"--run-dir {run_dir} is a single run; name an empty or new directory for several seeds")
    module, _, env_id = config.env.env_id.rpartition(":")
    program = f"import gymnasium, {module or 'sys'}; gymnasium.spec({env_id!r})"
    if not is_atari(env_id):
        command = [sys.executable, "-c", program]
        child = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
        stop.check()  # a terminal's Ctrl-C ends the child, too
        reason = child.stderr.strip().rpartition("\n")[2] or f"exit code {child.returncode}"
        if child.returncode and reason.startswith("gymnasium.error."):
            raise ConfigError(
                f"--seeds: each is a program of its own, which does not know {config.env.env_id}; register it in a"
                f" module in this folder and use module:{env_id}"
            )
        if child.returncode:
            raise CommandFailed(f"--seeds: each is a program of its own, which fails to start: {reason}")
    places = {seed: run_dir / f"seed-{seed}" for seed in range(first, last + 1)}
    for seed, place in places.items():
        check_not_training(place)
        check_run_dir(config.replace(seed=seed, run_dir=place), place)
    stop.check()
    from atari_dqn.agent.device import check_memory, threads_asked, threads_by_default

    check_memory(config, derived.replay_bytes)
    beside = _beside(config, derived, seeds)
    if beside > 1 and not threads_asked(config):
        config = config.replace(torch_threads=max(1, threads_by_default(kind) // beside))
    console = open_console()
    how = f"{beside} at a time" if beside > 1 else "one at a time"
    with locked(run_dir):
        say(
            console,
            f"{config.env.env_id}, seeds {first} to {last}, {how} ({cores()} cores,"
            f" {available_memory() / 1e9:.1f} GB free), each in {run_dir}/seed-K, output in output-K.txt",
        )
        for line in exploration_warning(config, derived):
            say(console, line)
        stop.check()
        commands = {seed: _command(config, seed, place, flags) for seed, place in places.items()}
        codes = _train_all(commands, run_dir, beside, stop, console)
    return _end(list(places.values()), codes, run_dir, console, first)


def _beside(config: TrainConfig, derived: Derived, seeds: int) -> int:
    """How many runs to have at once: each needs cores it can use well, and memory for a full replay.

    On a CPU one core for the learner and one for the environments: two runs with half the threads get further in an
    hour than one after the other. On a GPU the environments take the time, and each worker keeps a core busy.
    """
    import torch

    from atari_dqn.agent.device import resolve_device, threads_asked

    device = resolve_device(config.run.device)
    if device.type == "cpu":
        by_cores = cores() // max(2, threads_asked(config))
        by_memory = available_memory() / (derived.replay_bytes + RUN_BYTES)
    else:
        by_cores = cores() // (config.env.num_workers + 1)
        of_gpu = torch.cuda.mem_get_info(device)[0] / (derived.replay_bytes + RUN_BYTES)
        by_memory = min(of_gpu, available_memory() / RUN_BYTES)
    return max(1, min(seeds, by_cores, int(by_memory)))


def _command(config: TrainConfig, seed: int, run_dir: Path, flags: Mapping[str, str]) -> list[str]:
    """The command of one seed, with flags for what differs from that run's own settings, or from the defaults."""
    default = read_config(run_dir) if is_run_dir(run_dir) else TrainConfig()
    asked = config.replace(seed=seed, run_dir=run_dir).to_dict()
    given = {name: value for name, value in asked.items() if value != default.to_dict()[name]}
    given |= {"seed": seed, "run_dir": str(run_dir), **flags}
    return [sys.executable, "-m", "atari_dqn.train", *(word for item in given.items() for word in _words(*item))]


def _words(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [flag(name if value else f"no_{name}")]
    return [flag(name), *map(str, value if isinstance(value, list) else [value])]


def _train_all(
    commands: Mapping[int, Sequence[str]], run_dir: Path, beside: int, stop: StopRequest, console: Console
) -> dict[int, int]:
    """Run the commands of all seeds. Returns the exit codes by seed, without those that a stop left unstarted."""
    waiting, told = list(commands), False
    running: dict[int, subprocess.Popen[bytes]] = {}
    codes: dict[int, int] = {}
    try:
        while running or (waiting and not told):
            if stop.asked() and not told:
                told = True
                say(console, "stopping as soon as every run has saved its state")
                for process in running.values():
                    process.terminate()
            elif waiting and not told and len(running) < beside:
                seed = waiting.pop(0)
                running[seed] = _start(commands[seed], _log(run_dir, seed))
                say(console, f"seed {seed} started")
            time.sleep(LOOK_SECONDS)
            for seed in [seed for seed, process in running.items() if process.poll() is not None]:
                code = codes[seed] = running.pop(seed).returncode
                failed = f"failed with exit code {code}: see {_log(run_dir, seed)}"
                say(console, f"seed {seed} {'done' if code == DONE else 'stopped' if code in STOPPED else failed}")
    finally:
        for process in running.values():
            process.terminate()
    return codes


def _log(run_dir: Path, seed: int) -> Path:
    return run_dir / f"output-{seed}.txt"  # not `seed-*`, which names only runs


def _start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a run in its own session: a terminal's Ctrl-C reaches it once, from us; it stops if we are killed."""
    try:
        file = log.open("a")
    except OSError as error:
        raise CommandFailed(f"{log} cannot be written: {error.strerror}") from None
    with file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
            preexec_fn=hang_up_after_parent(),
        )


def _end(places: Sequence[Path], codes: Mapping[int, int], run_dir: Path, console: Console, first: int) -> int:
    """Say how to continue. Returns the exit code; raises `CommandFailed` if a seed failed and none was stopped."""
    if len(codes) < len(places) or any(code in STOPPED for code in codes.values()):
        # A resume takes its settings from a run that has started.
        how = f"--run-dir {shlex.quote(str(run_dir))} --seed {first} --seeds {len(places)}"
        saved = f"stopped, state saved; resume with {how}"
        nothing = "stopped, nothing to save; run the same command again"
        say(console, saved if any(map(is_run_dir, places)) else nothing)
        return INTERRUPTED
    say(console, f"to compare: python -m atari_dqn.compare {shlex.quote(str(run_dir))}/seed-*")
    if failed := [str(seed) for seed, code in codes.items() if code != DONE]:
        raise CommandFailed(
            f"of {len(places)} seeds these failed: {', '.join(sorted(failed, key=int))};"
            " the same command tries them again"
        )
    return DONE
