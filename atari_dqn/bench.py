"""`python -m atari_dqn.bench`: how fast would this machine run a training, and what limits it?

It takes the flags of the training. Tables show the speed of the workers alone, the learner alone and the whole loop,
and where the loop's time goes; then the bottleneck and the setting to change. Figures are medians over rounds of short
measurements.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from atari_dqn.cli.command import DONE, CommandFailed, parse_flags, run_command
from atari_dqn.config.schema import TrainConfig
from atari_dqn.config.setting import ConfigError, Setting, settings

SECONDS = Setting("length of each measurement", "seconds", 0, 3600, low_open=True)
ROUNDS = Setting("number of measurements of each kind, taken in turn; medians are shown", "rounds", 1, 1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchCommand(TrainConfig):
    """Measure how fast this machine would run a training, given the flags of that training.

    Flags that do not affect speed (--seed, --log-interval, --run-dir...) are accepted and have no effect.
    """

    seconds: Annotated[float, SECONDS, tyro.conf.arg(help=SECONDS.describe())] = 2.0
    rounds: Annotated[int, ROUNDS, tyro.conf.arg(help=ROUNDS.describe())] = 5
    out: Annotated[Path | None, tyro.conf.arg(help="also write every figure to this JSON file")] = None


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.bench") -> int:
    """Run the benchmark and print its tables.

    Returns:
        The exit code.

    Raises:
        ConfigError: A flag is wrong.
        CommandFailed: A worker failed.
    """
    command = parse_flags(BenchCommand, argv, prog=prog)
    config = TrainConfig(**{field.name: getattr(command, field.name) for field in dataclasses.fields(TrainConfig)})
    config.validate()
    for name in ("seconds", "rounds"):
        settings(BenchCommand)[name].check(name, getattr(command, name))
    if command.out is not None and not command.out.parent.is_dir():
        raise ConfigError(f"--out {command.out}: there is no directory {command.out.parent}")
    if command.out is not None and command.out.is_dir():
        raise ConfigError(f"--out {command.out} is a directory; name a file")

    from atari_dqn.envs.make import resolve_env_id, spec_of

    config = config.replace(env_id=resolve_env_id(config.env.env_id))
    spec = spec_of(config.env)

    from atari_dqn.cli.output import StatusLine, open_console

    console = open_console()
    with StatusLine(console, "importing torch") as status:
        from atari_dqn.diagnostics.benchmark import KINDS, benchmark, expected_seconds
        from atari_dqn.diagnostics.report import tables
        from atari_dqn.workers.pool import WorkerError

        console.print(
            f"{command.rounds} rounds of {KINDS} measurements of {command.seconds:g} s, after"
            f" {config.learner.learning_starts:,} env steps of random play; about"
            f" {expected_seconds(config, command.seconds, command.rounds):.0f} s in all",
            highlight=False,
        )
        try:
            report = benchmark(config, spec, command.seconds, command.rounds, status.update)
        except WorkerError as error:
            raise CommandFailed(str(error)) from None
    report["command"] = shlex.join([*prog.split(), *(sys.argv[1:] if argv is None else argv)])
    console.print(tables(report), highlight=False)
    console.print(f"bottleneck: {report['bottleneck']}\nto change: {report['advice']}", highlight=False)
    if command.out is not None:
        command.out.write_text(json.dumps(report, indent=2) + "\n")
    return DONE


if __name__ == "__main__":
    run_command(main)
