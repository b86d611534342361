"""`python -m atari_dqn.bench`: how fast would this machine run a training, and what limits it?

Tables show the speed of the workers alone, the learner alone and the whole loop, and where the loop's time goes; then
the bottleneck and the setting to change. Figures are medians over rounds of short measurements.
"""

import dataclasses
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from atari_dqn.cli.command import DONE, CommandFailed, run_command
from atari_dqn.config.presets import ABOUT
from atari_dqn.config.setting import ConfigError, Setting, help_from_settings
from atari_dqn.system.files import check_room_for
from atari_dqn.training.beginning import Beginning, parse_training


@help_from_settings
@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchCommand(Beginning):
    """Measure how fast this machine would run a training, given the flags of that training.

    Without flags it is the training that plain train would start, with --config RUN that of a run. Flags that do not
    affect speed (--seed, --log-interval...) are accepted and have no effect.
    """

    seconds: Annotated[float, Setting("length of each measurement", "seconds", 0, 3600, low_open=True)] = 2.0
    rounds: Annotated[
        int, Setting("number of measurements of each kind, taken in turn; medians are shown", "rounds", 1, 1000)
    ] = 5
    out: Annotated[Path | None, Setting("also write every figure to this JSON file")] = None


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.bench") -> int:
    """Run the benchmark and print its tables. Returns the exit code; raises `ConfigError` for bad input.

    `CommandFailed` means that a worker failed, or --out could not be written; then the tables are printed nevertheless.
    """
    command = parse_training(BenchCommand, argv, prog)
    config = command.settings().validate()
    if command.out is not None:
        try:
            command.out.parent.stat()  # which `check_room_for` would make
            check_room_for(command.out)
        except OSError as error:
            hint = "name a file in a writable directory that exists"
            raise ConfigError(f"cannot write --out {command.out}: {error.strerror}; {hint}") from None

    from atari_dqn.envs.make import resolve_env_id, spec_of

    config = config.replace(env_id=resolve_env_id(config.env.env_id))
    spec = spec_of(config.env)

    from atari_dqn.cli.output import StatusLine, open_console, say

    console = open_console()
    with StatusLine(console, "importing torch") as status:
        from atari_dqn.diagnostics.benchmark import benchmark
        from atari_dqn.diagnostics.report import tables
        from atari_dqn.workers.pool import WorkerError

        steps = config.learner.learning_starts
        each = f"{command.rounds} rounds of four measurements of {command.seconds:g} s"
        say(console, f"{each}, after {steps:,} env steps of random play")
        if command.preset != "auto":
            say(console, f"preset {command.preset}: {ABOUT[command.preset]}")
        try:
            report = benchmark(config, spec, command.seconds, command.rounds, status.update)
        except WorkerError as error:
            raise CommandFailed(str(error)) from None
    report["command"] = shlex.join([*prog.split(), *(sys.argv[1:] if argv is None else argv)])
    console.print(tables(report), highlight=False)
    say(console, f"bottleneck: {report['bottleneck']}\nto change: {report['advice']}")
    if command.out is not None:
        try:
            command.out.write_text(json.dumps(report, indent=2) + "\n")
        except OSError as error:
            raise CommandFailed(f"cannot write --out {command.out}: {error.strerror}") from None
    return DONE


if __name__ == "__main__":
    run_command(main)
