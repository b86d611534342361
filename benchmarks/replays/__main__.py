"""Our prioritized replay compared with those of torchrl, cpprb and Tianshou.

Each runs in a process and a virtual environment of its own, created from the pinned `requirements/`. They take short
turns, in rounds; medians over the rounds are reported. The work: with stacks of four 84x84 frames, draw batches of 32
and 256 transitions by priority and update their priorities. A replay that cannot be installed or run is reported with
the reason. It prints a table and writes `benchmarks/results/replays.json`.

    python -m benchmarks.replays
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atari_dqn.cli.command import BAD_INPUT
from atari_dqn.system.machine import available_memory, cores, describe_system
from benchmarks.environments import DIRECTORY, InstallError, interpreter
from benchmarks.replays.contestants import CONTESTANTS
from benchmarks.replays.seat import BATCHES, TINY

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RESULTS = HERE.parent / "results" / "replays.json"
WHOLE_STACKS = 2 * 4 * 84 * 84
"""Bytes of a transition stored as two whole stacks."""


class SeatError(RuntimeError):
    """A contestant's process ended; the message is its last line of output."""


class Seat:
    """A contestant in a process and a virtual environment of its own."""

    def __init__(self, name: str, python: Path, capacity: int, threads: int) -> None:
        # Not a pipe, which would fill up and block a library that prints much.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(python), "-m", "benchmarks.replays.seat", name, str(capacity), str(threads)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        try:
            self.facts: dict[str, Any] = self._answer()
        except BaseException:
            self.close()
            raise

    def turn(self, kind: str, seconds: float) -> float:
        """Microseconds per operation."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"kind": kind, "seconds": seconds}) + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        return 1e6 * float(answer["seconds"]) / int(answer["done"])

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self._process.wait()
        self._said.seek(0)
        said = [line.strip() for line in self._said if line.strip()]
        raise SeatError(said[-1] if said else f"exit code {code} without any output")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns exit code 1 if a replay could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replays", description="our replay compared with others")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="length of each turn")
    parser.add_argument("--capacity", type=int, default=2**15, help="number of transitions, a power of two")
    parser.add_argument("--torch-threads", type=int, default=cores())
    parser.add_argument(
        "--environments", type=Path, default=DIRECTORY / "replays", help="directory of the virtual environments"
    )
    parser.add_argument("--only", default=",".join(CONTESTANTS), help="replays, comma-separated (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    names = arguments.only.split(",")
    if mistake := _mistake(arguments, names):
        print(f"error: {mistake}", file=sys.stderr)
        return BAD_INPUT
    facts, taken, failed = play(names, arguments)
    report = {
        "system": describe_system(),
        "capacity": arguments.capacity,
        "torch_threads": arguments.torch_threads,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "replays": {
            name: facts[name] | {"microseconds": medians(taken, name), "remark": CONTESTANTS[name].remark}
            for name in facts
        },
        "failed": failed,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    return 1 if failed else 0


def _mistake(arguments: argparse.Namespace, names: Sequence[str]) -> str:
    """What is wrong with the flags, in one line; empty if they are valid."""
    unknown = [name for name in names if name not in CONTESTANTS]
    if unknown:
        return f"unknown replay --only {unknown[0]}; choose from {', '.join(CONTESTANTS)}"
    if arguments.rounds < 1 or not 0 < arguments.seconds <= 3600 or arguments.torch_threads < 1:
        return "--rounds and --torch-threads must be at least 1, --seconds in (0, 3600]"
    if arguments.capacity < 2**12 or arguments.capacity & (arguments.capacity - 1):
        return f"--capacity is {arguments.capacity}; it must be a power of two and at least 4096"
    needed, free = 1.1 * arguments.capacity * WHOLE_STACKS * len(names), available_memory()
    if needed > free:
        return f"--capacity {arguments.capacity} needs up to {needed / 1e9:.1f} GB; only {free / 1e9:.1f} GB are free"
    return ""


def play(
    names: Sequence[str], arguments: argparse.Namespace
) -> tuple[dict[str, dict[str, Any]], list[dict[str, dict[str, float]]], dict[str, str]]:
    """Take the turns.

    Returns:
        The facts of each replay, its microseconds by kind in each round, and the errors of those that failed.
    """
    seats: dict[str, Seat] = {}
    failed: dict[str, str] = {}
    taken: list[dict[str, dict[str, float]]] = []
    with contextlib.ExitStack() as stack:
        for name in names:
            package = CONTESTANTS[name].package
            try:
                python = Path(sys.executable)
                if package:
                    python = interpreter(HERE / "requirements" / f"{package}.txt", arguments.environments)
                print(f"filling {name}", flush=True)
                seats[name] = Seat(name, python, arguments.capacity, arguments.torch_threads)
                stack.callback(seats[name].close)
            except (InstallError, SeatError) as error:
                failed[name] = str(error)
                print(f"skipping {name}: {error}", flush=True)
        turns = sum(len(seat.facts["kinds"]) for seat in seats.values())
        rounds, seconds = arguments.rounds, arguments.seconds
        print(f"{rounds} rounds of {turns} turns of {seconds:g} s, {rounds * turns * seconds:.0f} s in all", flush=True)
        for number in range(rounds + 1):
            start = time.monotonic()
            warm_up = number == 0
            of_round: dict[str, dict[str, float]] = {}
            for name, seat in list(seats.items()):
                length = seconds / 4 if warm_up else seconds
                try:
                    of_round[name] = {kind: seat.turn(kind, length) for kind in seat.facts["kinds"]}
                except SeatError as error:
                    failed[name] = str(error)
                    print(f"skipping {name}: {error}", flush=True)
                    del seats[name]
            if not warm_up:
                taken.append(of_round)
                left = (rounds - number) * (time.monotonic() - start)
                print(f"round {number} of {rounds}; {left:.0f} s left", flush=True)
        facts = {name: seat.facts for name, seat in seats.items()}
    return facts, taken, failed


def medians(taken: Sequence[dict[str, dict[str, float]]], name: str) -> dict[str, float]:
    """Median microseconds of one replay over the rounds, by kind."""
    return {kind: statistics.median(of_round[name][kind] for of_round in taken) for kind in taken[0][name]}


def rows(report: dict[str, Any]) -> list[list[str]]:
    """Rows of the table, header first: bytes per transition, microseconds, share of transitions never stored."""
    drawn = [f"{kind} {size}" for kind in ("draw and update", "the same with tiny frames") for size in BATCHES]
    short = [f"{kind}\n{size}" for kind in ("draw,\nupdate", "no\ngather") for size in BATCHES]
    result = [["replay", "bytes per\ntransi-\ntion", "add\none", *short, "never\nstored"]]
    for name, replay in report["replays"].items():
        cost = replay["microseconds"]
        costs = [f"{cost['add']:,.1f}", *(f"{cost[kind]:,.0f}" for kind in drawn)]
        memory, wrong = f"{replay['bytes_per_transition']:,.0f}", f"{replay['share_wrong']:.2%}"
        result.append([name, memory, *costs, wrong])
    return result


def show(report: dict[str, Any]) -> None:
    """Print the report as a table."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    system = report["system"]
    header, *body = rows(report)
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=0,
        title=f"{system['processor']}, {system['cores']} cores; {report['capacity']:,} transitions; microseconds",
    )
    for number, name in enumerate(header):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in body:
        table.add_row(*row)
    console = Console()
    console.print(table)
    for name, replay in report["replays"].items():
        console.print(f"{name} {replay['version']}: {replay['remark']}", highlight=False)
    console.print(f"no gather: the same with frames of {TINY}x{TINY} pixels", highlight=False)
    console.print("never stored: share of the drawn transitions whose stacks were never stored", highlight=False)
    for name, reason in report["failed"].items():
        console.print(f"cannot measure {name}: {reason}", highlight=False)


if __name__ == "__main__":
    raise SystemExit(main())
