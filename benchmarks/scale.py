"""How cost grows with workers, envs, batch size and replay capacity: tables, plots and `benchmarks/results/scale.json`
flow out.

Each point is a trainer in a process of its own, its replay filled to the last frame (with noise, so that no page is
one of the kernel's shared zeros). The points of a sweep take short turns, round after round; medians are reported.
Memory is that of the whole family of processes. A capacity whose frames do not fit in this machine is named, and still
shows what drawing from so many transitions costs: with frames of 8x8 pixels, which every capacity is given.
Exit code 1 when memory misses its bounds.

    python -m benchmarks.scale
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atari_dqn.cli.command import BAD_INPUT
from atari_dqn.config.derived import derive
from atari_dqn.config.schema import TrainConfig
from atari_dqn.system.machine import available_memory, cores, describe_system
from benchmarks.seats import Seat

RESULTS = Path(__file__).parent / "results" / "scale.json"
FRAME_BYTES = 84 * 84
BASE = TrainConfig().replace(device="cpu", replay_capacity=2**15, learning_starts=1_000)
"""All that a sweep does not vary is the default, but for a replay that is filled sooner, and learnt from at once."""
SWEEPS: dict[str, tuple[str, dict[str, int], tuple[int, ...]]] = {
    "workers": ("num_workers", {"envs_per_worker": 1}, (1, 2, 4, 8, 16)),
    "envs": ("envs_per_worker", {"num_workers": 2}, (1, 2, 4, 8, 16)),
    "batch": ("batch_size", {}, (32, 64, 128, 256, 512, 1024)),
    "capacity": ("replay_capacity", {}, tuple(2**power for power in (14, 16, 17, 18, 20, 22))),
}
"""For each sweep the setting it varies, those it holds, and the values."""
ALL_TOLD = 2**17
"""The capacity at which a family's memory is bounded."""
LARGEST_FAMILY, LARGEST_TRANSITION = 2.5e9, 7_200
"""Bytes: of a family with `ALL_TOLD` transitions on a CPU; and of a transition, all told."""
REST = 0.8e9
"""Bytes a family may take beside its replay, in the estimate of what fits."""
WARM_UP = 0.25
"""Of a turn's length; these come first and do not count."""
PREPARE_SECONDS = 12.0
"""A guess for the first estimate of the time left: a point's imports, workers and replay."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One value in one sweep."""

    sweep: str
    value: int

    @property
    def config(self) -> TrainConfig:
        setting, held, _ = SWEEPS[self.sweep]
        return BASE.replace(**held, **{setting: self.value})

    @property
    def replay_bytes(self) -> int:
        return derive(self.config, FRAME_BYTES, self.config.env.frame_stack).replay_bytes


KINDS = {
    "workers": ("loop", "envs"),
    "envs": ("loop", "envs"),
    "batch": ("loop", "learner", "draw"),
    "capacity": ("loop", "learner", "draw"),
}
"""What is measured in each sweep, beside memory."""


# ---------------------------------------------------------------------- taking turns


class Progress:
    """What is going on, and how long all of it will take."""

    def __init__(self, sweeps: Sequence[str], rounds: int, seconds: float) -> None:
        values = {sweep: len(SWEEPS[sweep][2]) for sweep in sweeps}
        self._points = sum(values.values())
        self._prepared = 0
        self._preparing = PREPARE_SECONDS
        turns = sum(count * (len(KINDS[sweep]) + (sweep == "capacity")) for sweep, count in values.items())
        self._turns = (rounds + WARM_UP) * turns * seconds

    def prepared(self, seconds: float) -> None:
        """A point took so long to prepare."""
        self._preparing = (self._preparing * self._prepared + seconds) / (self._prepared + 1)
        self._prepared += 1

    def turned(self, seconds: float) -> None:
        """A turn of so many seconds is over."""
        self._turns -= seconds

    def say(self, doing: str) -> None:
        left = (self._points - self._prepared) * self._preparing + max(0.0, self._turns)
        minutes, seconds = divmod(round(left), 60)
        print(f"{doing}; about {minutes}:{seconds:02d} min left", flush=True)


def play(sweep: str, rounds: int, seconds: float, threads: int, progress: Progress) -> list[dict[str, Any]]:
    """A sweep's rows: of each value its median rates, its memory, and what did not fit."""
    from benchmarks.scale_seats import family, tiny

    points = [Point(sweep, value) for value in SWEEPS[sweep][2]]
    rows: list[dict[str, Any]] = []
    taken: list[dict[str, list[Any]]] = [{} for _ in points]
    with contextlib.ExitStack() as stack:
        seats: list[dict[str, Seat]] = []
        for point in points:
            progress.say(f"{sweep} {point.value:,}: preparing")
            start, free = time.monotonic(), available_memory()
            row: dict[str, Any] = {"sweep": sweep, "value": point.value, "replay_bytes": point.replay_bytes}
            contestants: list[tuple[Any, ...]] = []
            if sweep == "capacity":
                contestants.append((tiny, point.value, threads, point.config.learner.batch_size))
            if point.replay_bytes + REST > free:
                row["did_not_fit"] = {"needed": point.replay_bytes + REST, "free": free}
            else:
                contestants.append((family, point.config, threads, KINDS[sweep]))
            seats.append({})
            for contestant in contestants:
                seat = Seat(*contestant)
                stack.callback(seat.close)
                seats[-1] |= dict.fromkeys(seat.kinds, seat)
            rows.append(row)
            progress.prepared(time.monotonic() - start)
        for number in range(rounds + 1):
            progress.say(f"{sweep}: round {number} of {rounds}" if number else f"{sweep}: warming up")
            length = seconds if number else WARM_UP * seconds
            for of_point, of_taken in zip(seats, taken, strict=True):
                for kind, seat in of_point.items():
                    turn = seat.turn(kind, length)
                    if kind != "memory":
                        progress.turned(length)
                    if number:
                        of_taken.setdefault(kind, []).append(turn)
    return [row | summary(of_taken) for row, of_taken in zip(rows, taken, strict=True)]


def summary(taken: dict[str, list[Any]]) -> dict[str, Any]:
    """Medians over the rounds: `{kind: {rates}}`, and the largest memory seen."""
    from atari_dqn.diagnostics.measure import Rates

    result: dict[str, Any] = {}
    for kind, turns in taken.items():
        if kind == "memory":
            result[kind] = {name: max(turn[name] for turn in turns) for name in turns[0]}
        else:
            rates = vars(Rates.of(turns))
            result[kind] = {name: value for name, value in rates.items() if name != "turns"}
    return result


# ---------------------------------------------------------------------- the bounds


def bounds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the capacity sweep: a family's memory at `ALL_TOLD`, and what a transition costs, from how memory grows.

    The slope between the smallest and the largest capacity that fitted is free of all that does not grow: libraries,
    networks, workers.
    """
    fitted = [row for row in rows if row["sweep"] == "capacity" and "memory" in row]
    result = []
    for row in fitted:
        if row["value"] == ALL_TOLD:
            peak = row["memory"]["peak"]
            result.append(_bound(f"family at {ALL_TOLD:,} transitions, bytes", peak, LARGEST_FAMILY))
    if len(fitted) > 1:
        least, most = fitted[0], fitted[-1]
        grown = most["memory"]["shared_out"] - least["memory"]["shared_out"]
        each = grown / (most["value"] - least["value"])
        result.append(_bound("a transition, bytes, all told", each, LARGEST_TRANSITION))
    return result


def _bound(name: str, measured: float, at_most: float) -> dict[str, Any]:
    return {"name": name, "measured": measured, "at_most": at_most, "holds": measured <= at_most}


# ---------------------------------------------------------------------- the command


def main(argv: Sequence[str] | None = None) -> int:
    """Measure as the flags say; exit code 1 when a bound is missed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="how cost grows")
    parser.add_argument("--sweep", default=",".join(SWEEPS), help="some of: %(default)s")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.2, help="of each turn")
    parser.add_argument("--torch-threads", type=int, default=cores())
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON; the plots lie beside it")
    arguments = parser.parse_args(argv)
    sweeps = arguments.sweep.split(",")
    unknown = [sweep for sweep in sweeps if sweep not in SWEEPS]
    if unknown:
        print(f"--sweep {unknown[0]}: there are {', '.join(SWEEPS)}", file=sys.stderr)
        return BAD_INPUT
    if arguments.rounds < 1 or not 0 < arguments.seconds <= 3600 or arguments.torch_threads < 1:
        print("--rounds and --torch-threads must be at least 1, and --seconds above 0, at most 3600", file=sys.stderr)
        return BAD_INPUT
    progress = Progress(sweeps, arguments.rounds, arguments.seconds)
    start = time.monotonic()
    rows = [
        row
        for sweep in sweeps
        for row in play(sweep, arguments.rounds, arguments.seconds, arguments.torch_threads, progress)
    ]
    report = {
        "system": describe_system(),
        "config": BASE.to_dict(),
        "torch_threads": arguments.torch_threads,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "took": time.monotonic() - start,
        "rows": rows,
        "bounds": bounds(rows),
    }
    from benchmarks.scale_report import plot, show

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    plot(report, arguments.out.with_suffix(".png"))
    show(report)
    return 0 if all(bound["holds"] for bound in report["bounds"]) else 1


if __name__ == "__main__":
    raise SystemExit(main())
