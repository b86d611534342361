"""`python -m benchmarks.race`: who scores how much with the same number of core-hours.

    python -m benchmarks.race --cpu 1                                # the default plan, resumed where it was stopped
    python -m benchmarks.race --one breakout-cpu breakout 1 0.5      # contestant, game, seed, core-hours
    python -m benchmarks.race --report                               # table and picture from what the runs left

Kill it at any time; the same command resumes. A larger budget extends a run. Exit code 1 when an entry failed, 2 for
bad input, 3 when interrupted.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.race.contestants import CONTESTANTS
from benchmarks.race.entry import Entry, EntryFailed, Racer
from benchmarks.race.report import write_report

DONE, FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 3
LINE_SECONDS = 10.0
"""Seconds between progress lines."""

PLAN: tuple[tuple[str, str, int, float], ...] = (
    *((name, "breakout", seed, 2.0) for name in ("64-narrow-slower", "64-later") for seed in (1, 2, 3)),
    *(("32-ratio-8", "pong", seed, 1.0) for seed in (1, 2)),
    *((peer, "breakout", 1, 2.0) for peer in ("sb3", "cleanrl", "labml", "pfrl", "tianshou")),
    *((name, "breakout", 1, 0.25) for name in ("64-ratio-1.5", "64-uniform", "64-n-5")),
    *((name, "breakout", 1, 0.5) for name in ("breakout-cpu", "breakout-cpu-target", "small")),
)
"""What is raced without `--one`, in this order: contestant, game, seed, core-hours."""


class BadInput(ValueError):
    """The user's input is wrong; the message is one line."""


class Progress:
    """Prints results at once and progress every `LINE_SECONDS`."""

    def __init__(self) -> None:
        self._due = 0.0

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        if now >= self._due or "updates:" in text:
            self._due = now + LINE_SECONDS
            print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Race, or report. Returns the exit code; raises `BadInput`."""
    arguments = parse(argv)
    if arguments.report:
        if not arguments.dir.is_dir():
            raise BadInput(f"--dir {arguments.dir} is not a directory; name the --dir of a race")
        for file in write_report(arguments.dir):
            print(f"wrote {file}")
        return DONE
    if arguments.cpu is not None:
        os.sched_setaffinity(0, {arguments.cpu})
    os.nice(arguments.nice)
    failed = False
    for entry, budget in arguments.entries:
        try:
            Racer(entry, arguments.dir, Progress(), arguments.episodes).race(budget)
        except EntryFailed as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            failed = True
    return FAILED if failed else DONE


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags, checked; `entries` is a list of (`Entry`, core-hours). Raises `BadInput`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.race", description="score against core-hours")
    fields = ("CONTESTANT", "GAME", "SEED", "CORE_HOURS")
    parser.add_argument("--one", nargs=4, metavar=fields, action="append", help="race this; may be repeated")
    parser.add_argument("--report", action="store_true", help="write race.md and race.png from what the runs left")
    parser.add_argument("--dir", type=Path, default=Path("runs/race"), help="where the runs are kept: %(default)s")
    parser.add_argument("--cpu", type=int, help="core to run on, with all processes of the race; default: any")
    parser.add_argument("--nice", type=int, default=5, help="niceness added to all processes: %(default)s")
    parser.add_argument("--episodes", type=int, default=30, help="games of an evaluation: %(default)s")
    arguments = parser.parse_args(argv)
    if arguments.cpu is not None and arguments.cpu not in os.sched_getaffinity(0):
        raise BadInput(f"--cpu {arguments.cpu}: this process may use {sorted(os.sched_getaffinity(0))}")
    if not 0 <= arguments.nice <= 19:
        raise BadInput(f"--nice is {arguments.nice}; it must be from 0 to 19")
    if arguments.episodes < 1:
        raise BadInput(f"--episodes is {arguments.episodes}; it must be at least 1")
    arguments.entries = [_entry(*words) for words in arguments.one or PLAN]
    return arguments


def _entry(contestant: str, game: str, seed: str | int, hours: str | float) -> tuple[Entry, float]:
    if contestant not in CONTESTANTS:
        raise BadInput(f"unknown contestant {contestant!r}; the contestants are {', '.join(CONTESTANTS)}")
    if not re.fullmatch(r"[\w-]+", game):
        raise BadInput(f"game {game!r} must be a bare name, such as breakout or CartPole-v1")
    try:
        number, budget = int(seed), float(hours)
    except ValueError:
        raise BadInput(f"seed {seed!r} and core-hours {hours!r} must be numbers, the seed a whole one") from None
    if number < 0 or not 0 < budget <= 1000:
        raise BadInput(f"seed {seed} must be 0 or more, and core-hours {hours} above 0 and at most 1000")
    return Entry(contestant, game, number), budget


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT, too: a shell's background job begins with it ignored
        signal.signal(number, signal.default_int_handler)
    try:
        sys.exit(main())
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        sys.exit(INTERRUPTED)
