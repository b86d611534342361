"""`python -m atari_dqn.doctor`: is this machine ready to train, and which settings suit it?

Until a check needs more, only the standard library is imported: doctor must run where something is broken. Exit code 0:
ready, with or without warnings; 1: not ready.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import atari_dqn
from atari_dqn.cli.command import run_command
from atari_dqn.diagnostics.checks import CHECKS, Finding, first_line, run_check

COLOURS = {"ok": "32", "note": "36", "warning": "33", "error": "31;1"}


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.doctor") -> int:
    """Check the machine, print a line for each finding, then suggest settings. Returns the exit code."""
    parser = argparse.ArgumentParser(prog=prog, description="Check this machine and suggest settings that suit it.")
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")  # type: ignore[method-assign]
    parser.add_argument("-V", "--version", action="version", version=f"atari_dqn {atari_dqn.__version__}")
    parser.parse_args(argv)
    levels = []
    for name, check in CHECKS.items():
        for finding in run_check(check):
            levels.append(finding.level)
            _print(name, finding)
    if errors := levels.count("error"):
        print(f"not ready: {errors} error{'s' * (errors > 1)}; fix as described above")
        return 1
    warnings = levels.count("warning")
    print(f"ready{f', with {warnings} warning' + 's' * (warnings > 1) if warnings else ''}")
    try:
        _suggest()
    except Exception as error:
        print(f"not ready: a short run failed: {type(error).__name__}: {first_line(error)}")
        return 1
    return 0


def _suggest() -> None:
    from atari_dqn.cli.output import StatusLine, open_console, say
    from atari_dqn.diagnostics.advice import GAME, measure_machine, suggestion

    console, doing = open_console(), "measuring for a few seconds"
    with StatusLine(console, doing) as status:
        machine = measure_machine(lambda: status.update(f"{doing}, on {GAME}"))
    say(console, "\n".join(["", *suggestion(machine)]))


def _print(name: str, finding: Finding) -> None:
    level = f"{finding.level:<9}"
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        level = f"\x1b[{COLOURS[finding.level]}m{level}\x1b[0m"
    print(level + finding.line(name), flush=True)  # now: the next check may take a while


if __name__ == "__main__":
    run_command(main)
