"""How cost grows with the number of workers and envs, the batch size and the replay capacity.

Each point is a trainer in a process of its own, with a full replay (of noise, because unwritten pages would take no
memory). The points of a sweep take short turns, in rounds; medians are reported. Memory is that of the trainer and all
its descendants. The cost of drawing is also measured with frames of 8x8 pixels, at every capacity; a capacity whose
whole frames do not fit in memory has only that figure. It prints tables and writes `benchmarks/results/scale.json` and
plots. Exit code 1: memory exceeds its bounds.

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
"""Settings a sweep does not vary: the defaults, except for a smaller replay and an earlier start of learning."""
SWEEPS: dict[str, tuple[str, dict[str, int], tuple[int, ...]]] = {
    "workers": ("num_workers", {"envs_per_worker": 1}, (1, 2, 4, 8, 16)),
    "envs": ("envs_per_worker", {"num_workers": 2}, (1, 2, 4, 8, 16)),
    "batch": ("batch_size", {}, (32, 64, 128, 256, 512, 1024)),
    "capacity": ("replay_capacity", {}, tuple(2**power for power in (14, 16, 17, 18, 20, 22))),
}
"""For each sweep: the setting it varies, the settings it fixes, and the values."""
BOUNDED_CAPACITY = 2**17
"""Replay capacity at which the memory of all processes has a bound."""
LARGEST_FAMILY, LARGEST_TRANSITION = 2.5e9, 7_200
"""Bounds in bytes: all processes with `BOUNDED_CAPACITY` transitions on a CPU; total memory per transition."""
REST = 0.8e9
"""Bytes besides the replay, in the estimate of what fits in memory."""
WARM_UP = 0.25
"""Length of the first turns, which are discarded, relative to the others."""
PREPARE_SECONDS = 12.0
"""First guess of the time to prepare a point: imports, workers and replay."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One value of one sweep."""

    sweep: str
    value: int

    @property
    def config(self) -> TrainConfig:
        setting, held, _ = SWEEPS[self.sweep]
        return BASE.replace(**held, **{setting: self.value})

    @property
    def replay_bytes(self) -> int:
        return derive(self.config, FRAME_BYTES).replay_bytes


KINDS = {
    "workers": ("loop", "envs"),
    "envs": ("loop", "envs"),
    "batch": ("loop", "learner", "draw"),
    "capacity": ("loop", "learner", "draw"),
}
"""What each sweep measures, besides memory."""


# ---------------------------------------------------------------------- taking turns


class Progress:
    """What is being done, and the time left."""

    def __init__(self, sweeps: Sequence[str], rounds: int, seconds: float) -> None:
        values = {sweep: len(SWEEPS[sweep][2]) for sweep in sweeps}
        self._points = sum(values.values())
        self._prepared = 0
        self._preparing = PREPARE_SECONDS
        turns = sum(count * (len(KINDS[sweep]) + (sweep == "capacity")) for sweep, count in values.items())
        self._turns = (rounds + WARM_UP) * turns * seconds

    def prepared(self, seconds: float) -> None:
        """Count a point as prepared, in this time."""
        self._preparing = (self._preparing * self._prepared + seconds) / (self._prepared + 1)
        self._prepared += 1

    def turned(self, seconds: float) -> None:
        """Count a turn of this length as done."""
        self._turns -= seconds

    def say(self, doing: str) -> None:
        left = (self._points - self._prepared) * self._preparing + max(0.0, self._turns)
        minutes, seconds = divmod(round(left), 60)
        print(f"{doing}; about {minutes}:{seconds:02d} min left", flush=True)


def play(sweep: str, rounds: int, seconds: float, threads: int, progress: Progress) -> list[dict[str, Any]]:
    """Measure a sweep. Returns a row for each value: median rates, memory, and what did not fit."""
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
    """Median rates over the rounds by kind, and the largest memory."""
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
    """Bounds of the capacity sweep: memory of all processes at `BOUNDED_CAPACITY`, and memory per transition.

    The latter is the slope between the smallest and the largest capacity that fit, so that libraries, networks and
    workers, whose size is constant, do not count.
    """
    fitted = [row for row in rows if row["sweep"] == "capacity" and "memory" in row]
    result = []
    for row in fitted:
        if row["value"] == BOUNDED_CAPACITY:
            peak = row["memory"]["peak"]
            result.append(_bound(f"all processes at {BOUNDED_CAPACITY:,} transitions, bytes", peak, LARGEST_FAMILY))
    if len(fitted) > 1:
        least, most = fitted[0], fitted[-1]
        grown = most["memory"]["shared_out"] - least["memory"]["shared_out"]
        each = grown / (most["value"] - least["value"])
        result.append(_bound("total bytes per transition", each, LARGEST_TRANSITION))
    return result


def _bound(name: str, measured: float, at_most: float) -> dict[str, Any]:
    return {"name": name, "measured": measured, "at_most": at_most, "holds": measured <= at_most}


# ---------------------------------------------------------------------- the command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sweeps and report them. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description="how cost grows")
    parser.add_argument(
        "--sweep", default=",".join(SWEEPS), help="sweeps to run, comma-separated (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.2, help="length of each turn")
    parser.add_argument("--torch-threads", type=int, default=cores())
    parser.add_argument("--out", type=Path, default=RESULTS, help="JSON file; the plots are written beside it")
    arguments = parser.parse_args(argv)
    sweeps = arguments.sweep.split(",")
    unknown = [sweep for sweep in sweeps if sweep not in SWEEPS]
    if unknown:
        print(f"error: unknown --sweep {unknown[0]}; choose from {', '.join(SWEEPS)}", file=sys.stderr)
        return BAD_INPUT
    if arguments.rounds < 1 or not 0 < arguments.seconds <= 3600 or arguments.torch_threads < 1:
        print("error: --rounds and --torch-threads must be at least 1, --seconds in (0, 3600]", file=sys.stderr)
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
