"""`python -m benchmarks.peers`: other trainers compared with ours on the same work.

Each contestant runs in a process of its own, with its workers, and is idle while the others are measured. They take
turns, in rounds. It prints tables and writes `benchmarks/results/peers.json` and a picture. Exit code 1: a goal was
missed or a contestant failed. `benchmarks/peers/README.md` describes what each peer does, and how.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from atari_dqn.cli.command import DONE, FAILED, run_command
from atari_dqn.cli.output import StatusLine, open_console
from atari_dqn.config.setting import ConfigError
from atari_dqn.system.machine import cores, describe_system
from benchmarks.environments import DIRECTORY, InstallError, interpreter
from benchmarks.peers.goals import goals, standing
from benchmarks.peers.seats import ContestantFailed, Seat, Turn, Watch
from benchmarks.peers.show import draw, print_report
from benchmarks.peers.work import CONTESTANTS, Work

RESULTS = Path(__file__).parent.parent / "results" / "peers.json"

Say = Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(argv)
    work = Work(
        replay_capacity=arguments.replay_capacity,
        learning_starts=arguments.replay_capacity,
        torch_threads=arguments.torch_threads,
    )
    console = open_console()
    taken, seats, failed = compete(
        arguments.only, work, arguments.rounds, arguments.seconds, arguments.environments, console
    )
    standings = {name: standing(name, turns, seats[name].peak, seats[name].versions) for name, turns in taken.items()}
    report = {
        "system": describe_system(),
        "command": shlex.join(["python", "-m", "benchmarks.peers", *(sys.argv[1:] if argv is None else argv)]),
        "work": vars(work),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "standings": standings,
        "goals": goals(standings, work),
        "failed": failed,
    }
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    print_report(report, console)
    if standings:
        draw(report, arguments.out.with_suffix(".png"))
    return FAILED if failed or not all(goal["holds"] for goal in report["goals"]) else DONE


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The flags, checked; `only` is a list of names. Raises `ConfigError`."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="other trainers compared with ours on the same work"
    )
    parser.add_argument(
        "--only", default=",".join(CONTESTANTS), help="contestants, comma-separated (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a turn")
    parser.add_argument("--torch-threads", type=int, default=cores(), help="threads of each learner; workers have one")
    parser.add_argument(
        "--replay-capacity",
        type=int,
        default=Work.replay_capacity,
        help="transitions; the replay is full before the first turn",
    )
    parser.add_argument("--environments", type=Path, default=DIRECTORY / "peers", help="where the peers are installed")
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file; the picture is written beside it")
    arguments = parser.parse_args(argv)
    arguments.only = list(dict.fromkeys(name.strip() for name in arguments.only.split(",")))
    for name in arguments.only:
        if name not in CONTESTANTS:
            raise ConfigError(f"unknown contestant --only {name}; choose from {', '.join(CONTESTANTS)}")
    for flag, least, most in (("rounds", 1, 1000), ("seconds", 0.1, 3600), ("torch_threads", 1, 4096)):
        value = getattr(arguments, flag)
        if not least <= value <= most:
            raise ConfigError(f"--{flag.replace('_', '-')} is {value}; it must be from {least} to {most}")
    capacity = arguments.replay_capacity
    if not 2**10 <= capacity <= 2**20 or capacity & (capacity - 1):
        raise ConfigError(f"--replay-capacity is {capacity}; it must be a power of two from 2^10 to 2^20")
    if arguments.out.suffix != ".json" or not arguments.out.parent.is_dir():
        raise ConfigError(f"--out {arguments.out} is not a .json file in an existing directory")
    return arguments


def compete(
    names: Sequence[str], work: Work, rounds: int, seconds: float, environments: Path, console: Any
) -> tuple[dict[str, list[Turn]], dict[str, Seat], dict[str, str]]:
    """Take the turns.

    Returns:
        The turns of each contestant that did not fail, every contestant's seat, and the errors of those that failed.
    """
    seats: dict[str, Seat] = {}
    failed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))

        def fail(name: str, error: Exception) -> None:
            failed[name] = str(error)
            console.print(f"{name} failed: {error}", highlight=False)

        for number, name in enumerate(names, 1):
            console.print(f"preparing {name}, {number} of {len(names)}", highlight=False)
            try:
                with StatusLine(console, f"{name}: starting") as status:
                    seat = _start(name, work, environments, logs / name, status.update)
                    seats[name] = stack.enter_context(seat)
                    seat.prepare(_warming(name, work, status.update))
            except (ContestantFailed, InstallError) as error:
                fail(name, error)
        taken: dict[str, list[Turn]] = {name: [] for name in seats if name not in failed}
        console.print(f"{rounds} rounds of {len(taken)} turns of {seconds:g} s", highlight=False)
        end = time.monotonic() + rounds * len(taken) * seconds
        for number in range(1, rounds + 1):
            for name in list(taken):
                with StatusLine(console, f"round {number} of {rounds}: {name}") as status:
                    where = f"round {number} of {rounds}: {name}"
                    try:
                        taken[name].append(seats[name].turn(seconds, _counting_down(where, end, status.update)))
                    except ContestantFailed as error:
                        fail(name, error)
                        del taken[name]
    return taken, seats, failed


def _start(name: str, work: Work, environments: Path, log: Path, say: Say) -> Seat:
    who = CONTESTANTS[name]
    requirements = Path(__file__).parent / "requirements" / f"{name}.txt"
    python = sys.executable if who.is_ours else interpreter(requirements, environments, say)
    return Seat([str(python), "-m", who.module], work, log, who.arguments)


def _counting_down(where: str, end: float, say: Say) -> Watch:
    return lambda _: say(f"{where}; {max(0.0, end - time.monotonic()):.0f} s left")


def _warming(name: str, work: Work, say: Say) -> Watch:
    began = time.monotonic()
    first: tuple[float, int] | None = None
    """Time and env steps of the first message."""
    latest: dict[str, Any] = {}

    def watch(message: dict[str, Any]) -> None:
        nonlocal first
        latest.update(message)
        now, steps = time.monotonic(), latest.get("env_steps")
        if steps is None:
            say(f"{name}: starting, {now - began:.0f} s so far")
        elif steps >= work.learning_starts:
            say(f"{name}: {latest['updates']} of {work.warm_up_updates} warm-up updates")
        else:
            first = first or (now, steps)
            seconds_a_step = (now - first[0]) / max(1, steps - first[1])
            left = f"; about {seconds_a_step * (work.learning_starts - steps):.0f} s left" if steps > first[1] else ""
            say(f"{name}: {steps:,} of {work.learning_starts:,} env steps to fill the replay{left}")

    return watch


if __name__ == "__main__":
    run_command(main)
