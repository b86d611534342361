"""`python -m atari_dqn.doctor`: this machine flows in; whether it is ready, and settings that suit it, flow out.

It is what one runs when something is broken, so nothing but the standard library is imported here, and each check
imports what it needs for itself. Exit code 0: ready, warnings or not; 1: not ready.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from atari_dqn.diagnostics import library_checks as libraries
from atari_dqn.diagnostics import machine_checks as machine
from atari_dqn.diagnostics.library_checks import FAULT, OK, WARNING, Found

CHECKS: dict[str, Callable[[Path], Found]] = {
    "Python": libraries.check_python,
    "libraries": libraries.check_libraries,
    "OpenCV": libraries.check_opencv,
    "games": machine.check_games,
    "GPU": machine.check_gpu,
    "precision": machine.check_precision,
    "cores": machine.check_cores,
    "memory": machine.check_memory,
    "shared memory": machine.check_shared_memory,
    "disk": machine.check_disk,
    "optional": libraries.check_extras,
}
COLOURS = {OK: "32", WARNING: "33", FAULT: "31;1"}
MARGIN = 24
"""Columns of a finding's level and name."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check has found."""

    level: str
    name: str
    text: str
    remedy: str = ""
    """what to do; empty where nothing is"""


def examine(name: str, check: Callable[[Path], Found], runs: Path) -> Iterator[Finding]:
    """The findings of a check, one by one. Whatever it raises is one of them."""
    try:
        for level, text, remedy in check(runs):
            yield Finding(level, name, text, remedy)
    except ImportError as error:  # which the check of the libraries tells with what to do
        yield Finding(WARNING, name, f"not examined: {libraries.first_line(error)}")
    except (Exception, SystemExit) as error:
        yield Finding(FAULT, name, f"examining it failed: {type(error).__name__}: {libraries.first_line(error)}")


def main(argv: Sequence[str] | None = None, prog: str = "python -m atari_dqn.doctor") -> int:
    """Examine the machine, print a line for each finding, and suggest settings. Returns the exit code."""
    command = _parse(argv, prog)
    findings = []
    for name, check in CHECKS.items():
        for finding in examine(name, check, command.runs):
            findings.append(finding)
            _print(finding)
    faults = sum(finding.level == FAULT for finding in findings)
    warnings = sum(finding.level == WARNING for finding in findings)
    if faults:
        print(f"not ready: {faults} {'faults' if faults > 1 else 'fault'}; what to do stands below each")
        return 1
    print(f"ready{f', with {warnings} ' + ('warnings' if warnings > 1 else 'warning') if warnings else ''}")
    try:
        from atari_dqn.diagnostics import advice as doctor_advice

        doctor_advice.advise()
    except Exception as error:
        print(f"not ready: a short run fails: {type(error).__name__}: {libraries.first_line(error)}")
        return 1
    return 0


def _parse(argv: Sequence[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description="Is this machine ready to train, and how would it best?")
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")  # type: ignore[method-assign]
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where runs will be kept (default: %(default)s)"
    )
    command = parser.parse_args(argv)
    if os.path.exists(command.runs) and not os.path.isdir(command.runs):  # of any length
        parser.error(f"--runs {command.runs} is a file; name a directory")
    return command


def _print(finding: Finding) -> None:
    """As wide as the terminal; elsewhere a line for the finding and one for what to do, whatever their length."""
    level = f"{finding.level:<9}"
    terminal = sys.stdout.isatty()
    if terminal and not os.environ.get("NO_COLOR"):
        level = f"\x1b[{COLOURS[finding.level]}m{level}\x1b[0m"
    print(f"{level}{finding.name:<{MARGIN - 9}}", end="")
    for number, text in enumerate(text for text in (finding.text, finding.remedy and f"-> {finding.remedy}") if text):
        width = shutil.get_terminal_size().columns - MARGIN if terminal else sys.maxsize
        lines = textwrap.wrap(text, max(30, width), break_long_words=False, break_on_hyphens=False)
        print(" " * MARGIN if number else "", f"\n{' ' * MARGIN}".join(lines), sep="")
    sys.stdout.flush()  # what takes long is the next one


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(3)
