"""`python -m atari_dqn.bench`: the flags of a training flow in, how fast this machine runs it flows out.

Tables of workers alone, learner alone and both in the real loop, of where the time of the loop, of the cores and of an
update goes, and of how near its arithmetic comes to the machine's peak; then the bottleneck and the setting to change.
All are measured in turn, several rounds of them, and the medians are shown.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from atari_dqn.agent.device import check_memory, set_up_torch
from atari_dqn.cli.command import DONE, CommandFailed, parse_flags, run_command
from atari_dqn.config.derived import derive
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, Setting, settings
from atari_dqn.diagnostics.report import diagnose, tables
from atari_dqn.system.machine import describe_system

SECONDS = Setting("length of each measurement", "seconds", 0, 3600, low_open=True)
ROUNDS = Setting("so many measurements of each kind, in alternation; medians are shown", "rounds", 1, 1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchCommand(TrainConfig):
    """Measure how fast this machine would run a training: give it the flags of the training.

    Flags that have no bearing on speed (--seed, --log-interval, --run-dir...) are taken and change nothing.
    """

    seconds: Annotated[float, SECONDS, tyro.conf.arg(help=SECONDS.describe())] = 2.0
    rounds: Annotated[int, ROUNDS, tyro.conf.arg(help=ROUNDS.describe())] = 5
    out: Annotated[Path | None, tyro.conf.arg(help="write every figure to this JSON file, too")] = None


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.bench") -> int:
    """Measure as the flags say. Returns the exit code; raises `ConfigError` for bad input."""
    command = parse_flags(BenchCommand, argv, prog=prog)
    config = TrainConfig(**{field.name: getattr(command, field.name) for field in dataclasses.fields(TrainConfig)})
    config.validate()
    for name in ("seconds", "rounds"):
        settings(BenchCommand)[name].check(name, getattr(command, name))
    if command.out is not None and not command.out.parent.is_dir():
        raise ConfigError(f"--out {command.out}: there is no directory {command.out.parent}")
    if command.out is not None and command.out.is_dir():
        raise ConfigError(f"--out {command.out} is a directory; name a file")

    from atari_dqn.envs.make import env_spec, resolve_env_id
    from atari_dqn.envs.protocol import PROTOCOLS

    config = config.replace(env_id=resolve_env_id(config.env.env_id))
    spec = env_spec(config.env.env_id, PROTOCOLS[config.env.protocol], config.env.frame_stack)

    from rich.console import Console

    from atari_dqn.workers.pool import WorkerError

    console = Console()
    try:
        report = _measure(config, spec, command.seconds, command.rounds, console)
    except WorkerError as error:
        raise CommandFailed(str(error)) from None
    report["command"] = shlex.join([*prog.split(), *(sys.argv[1:] if argv is None else argv)])
    for table in tables(report, console.width):
        console.print(table)
    console.print(f"[bold]bottleneck:[/bold] {report['bottleneck']}", highlight=False)
    console.print(f"[bold]to change:[/bold] {report['advice']}", highlight=False)
    if command.out is not None:
        command.out.write_text(json.dumps(report, indent=2) + "\n")
    return DONE


def _measure(config: TrainConfig, spec: Any, seconds: float, rounds: int, console: Any) -> dict[str, Any]:
    """Every figure of a benchmark, JSON-ready."""
    from atari_dqn.cli.output import StatusLine

    turns = 6 * rounds
    console.print(
        f"{rounds} rounds of 6 measurements of {seconds:g} s, after {config.learner.learning_starts:,} env steps of"
        f" random play; about {turns * seconds + 5 + config.learner.learning_starts / 3000:.0f} s in all",
        highlight=False,
    )
    with StatusLine(console, "importing torch") as status:
        threads = set_up_torch(config)
        check_memory(config, derive(config, spec.frame_bytes, spec.stack).replay_bytes)

        from atari_dqn.diagnostics.flops import matmul_peaks, update_flops
        from atari_dqn.diagnostics.measure import Bench, Rates, Turn, family_memory
        from atari_dqn.training.trainer import Trainer

        trainer = Trainer(config, spec)
        progress = _Progress(trainer, turns, seconds)
        bench = Bench(trainer, lambda: status.update(progress.line()))
        rated: dict[str, Callable[[float], Turn]] = {
            "workers alone": bench.workers_alone,
            "learner alone": bench.learner_alone,
            "the loop": bench.loop,
        }
        taken: dict[str, list[Turn]] = {kind: [] for kind in rated}
        accounts, updates, peaks, memory = [], [], [], 0
        try:
            bench.prepare()
            for _ in range(rounds):
                for kind, take in rated.items():
                    progress.next(kind)
                    taken[kind].append(take(seconds))
                progress.next("where the time goes")
                accounts.append(bench.account(seconds))
                progress.next("where an update's time goes")
                updates.append(bench.update_account(seconds))
                progress.next("the machine's peak")
                peaks.append(matmul_peaks(trainer.device, seconds))
                memory = max(memory, family_memory())
            replay = trainer.replay
            # The ring's pages are taken as they are first written to; on a GPU they are, all of them.
            unwritten = max(0.0, 1 - (replay.newest + 1) / replay.num_rows)
            frames_to_come = int(unwritten * replay.frames.nbytes) if trainer.device.type == "cpu" else 0
        finally:
            trainer.close()
    learner = config.learner
    report = {
        "config": config.to_dict(),
        "system": describe_system(),
        "device": str(trainer.device),
        "precision": trainer.learner.precision,
        "torch_threads": threads,
        "seconds": seconds,
        "rounds": rounds,
        "rates": {kind: dataclasses.asdict(Rates.of(turns)) for kind, turns in taken.items()},
        "account": _medians([account.shares for account in accounts]),
        "cores": _medians([account.cores for account in accounts]),
        "update": _medians(updates),
        "flops": update_flops(trainer.learner.online, learner.batch_size, double_q=learner.double_q),
        "peaks": {precision: max(peak[precision] for peak in peaks) for precision in peaks[0]},
        "memory_bytes": memory,
        "memory_bytes_full": memory + frames_to_come,
    }
    return report | diagnose(report)


def _medians(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(figure[name] for figure in figures) for name in figures[0]}


class _Progress:
    """What is going on, and how long it will take."""

    def __init__(self, trainer: Any, turns: int, seconds: float) -> None:
        self._trainer, self._left, self._seconds = trainer, turns, seconds
        self._doing = ""
        self._started = time.monotonic()

    def next(self, kind: str) -> None:
        self._doing = kind
        self._left -= 1
        self._started = time.monotonic()

    def line(self) -> str:
        """One line, in minutes and seconds."""
        from atari_dqn.cli.format import duration

        passed = time.monotonic() - self._started
        if self._doing:
            left = self._left * self._seconds + max(0.0, self._seconds - passed)
            return f"measuring {self._doing}; {duration(left)} left"
        done, all_steps = self._trainer.env_steps, max(1, self._trainer.config.learner.learning_starts)
        left = max(0, all_steps - done) * passed / max(1, done) + self._left * self._seconds
        return f"random play: {done:,} of {all_steps:,} env steps; {duration(left)} left"


if __name__ == "__main__":
    run_command(main)
