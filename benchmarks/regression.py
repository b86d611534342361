"""Regression check of CI: has the code become slower?

Exact counts (`benchmarks.counts`) must not exceed `benchmarks/budget.json`. Ratios of two things measured in turn on
the same machine must meet bounds that are generous enough for a noisy machine. Noise affects some rounds, a regression
nearly all: a ratio fails only if hardly any round meets its bound, twice, the second time with restarted contestants.
Exit code 1: something failed; there is a line for each failure.

    python -m benchmarks.regression
    python -m benchmarks.regression --write-budget    # after a change that is meant to change the counts
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from atari_dqn.system.machine import cores
from benchmarks.ratios import Seat, learner, native_vector_env, over_limits, whole, worker_pool

if TYPE_CHECKING:  # only the contestants import torch, each in its own process
    from atari_dqn.diagnostics.measure import Turn

    Turns = Mapping[str, Turn]

BUDGET = Path(__file__).parent / "budget.json"
HARD = {"replay: bytes a transition": 7200, "workers: bytes through pipes a worker and tick": 2}
"""Upper limits of the budget itself: these are promises of this project."""
WELL_UNDER = 0.9
"""Share of its budget below which a count should get a lower one."""

BATCH, ROUNDS, SECONDS = 32, 12, 0.2
MAY_KEEP = 1 / 6
"""Share of the rounds that may meet the bound although the ratio fails."""
THREADS = min(cores(), 2)
"""Limited, so that ratios are the same on large and small machines."""
SEATS: dict[str, tuple[tuple[Any, ...], Sequence[str]]] = {
    "workers": ((worker_pool, 2), [""]),
    "native": ((native_vector_env, 2), [""]),
    "fp32": ((learner, "fp32", THREADS, BATCH), ["fixed", "replay"]),
    "plain": ((learner, "plain", THREADS, BATCH), ["fixed"]),
    "whole": ((whole, 2, 4, THREADS, BATCH, 256), ["envs", "learner", "loop"]),
}
"""Contestants, and the kinds of turns each takes."""


class Ratio(NamedTuple):
    """A function of the turns of one round, and its lower or upper bound."""

    of: Callable[[Turns], float]
    least: float | None = None
    most: float | None = None

    def holds(self, figure: float) -> bool:
        return (self.least is None or figure >= self.least) and (self.most is None or figure <= self.most)

    def __str__(self) -> str:
        return f"≥ {self.least}" if self.least is not None else f"≤ {self.most}"


RATIOS = {
    "updates/s, fp32 over plain": Ratio(
        lambda t: t["fp32 fixed"].updates_per_second / t["plain fixed"].updates_per_second, least=1.0
    ),
    "updates/s, drawn batches over given ones": Ratio(
        lambda t: t["fp32 replay"].updates_per_second / t["fp32 fixed"].updates_per_second, least=0.8
    ),
    "env steps/s, our workers over AtariVectorEnv": Ratio(
        lambda t: t["workers"].env_steps_per_second / t["native"].env_steps_per_second, least=0.6
    ),
    "time of the loop over its limit": Ratio(
        lambda t: over_limits("whole", dict(t), BATCH)["whole / the largest"], most=1.5
    ),
}


# ---------------------------------------------------------------------- counts


def over_budget(figures: Mapping[str, int], budget: Mapping[str, int]) -> list[str]:
    """A line for each count that exceeds its budget or `HARD`, has no budget, or is in the budget only."""
    lines = []
    for name in (*figures, *(name for name in budget if name not in figures)):
        if name not in figures:
            lines.append(f"{name}: has a budget of {budget[name]:,} but is no longer counted")
        elif name not in budget:
            lines.append(f"{name}: {figures[name]:,}, but has no budget")
        else:
            most = min(budget[name], HARD.get(name, budget[name]))
            if figures[name] > most:
                lines.append(f"{name}: {figures[name]:,}, over its budget of {most:,}")
    return lines


def well_under(figures: Mapping[str, int], budget: Mapping[str, int]) -> list[str]:
    """A line for each count so far below its budget that the budget would not notice a regression."""
    return [
        f"{name}: {figure:,}, well under its budget of {budget[name]:,}"
        for name, figure in figures.items()
        if name in budget and figure < WELL_UNDER * budget[name]
    ]


def check_counts(write: bool) -> list[str]:
    """Count, compare with the budget, print budgets that could be lower. Returns a line for each failure."""
    import torch

    from benchmarks.counts import figures

    torch.set_num_threads(1)
    print("counting", flush=True)
    found = figures()
    if write:
        BUDGET.write_text(json.dumps({"torch": torch.__version__.split("+")[0], "figures": found}, indent=2) + "\n")
        print(f"wrote {BUDGET.name}: {len(found)} figures")
    stored = json.loads(BUDGET.read_text())
    budget = stored["figures"]
    misses = over_budget(found, budget)
    print(f"{len(found) - len(misses)} of {len(found)} counts within their budgets")
    for line in well_under(found, budget):
        print(f"  {line}; lower it with --write-budget")
    same = torch.__version__.split("+")[0] == stored["torch"]
    hint = "" if same else f" (counted with torch {stored['torch']}; this is {torch.__version__})"
    return [line + hint for line in misses]


# ---------------------------------------------------------------------- ratios


def take(rounds: int) -> list[Turns]:
    """Start the contestants and take their turns. Returns a dict of turns for each round."""
    with contextlib.ExitStack() as stack:
        seats: dict[str, Seat] = {}
        for name, (contestant, _) in SEATS.items():
            print(f"preparing {name}", flush=True)
            seats[name] = Seat(*contestant)
            stack.callback(seats[name].close)

        def one() -> Turns:
            return {
                f"{name} {kind}".strip(): seats[name].turn(kind, SECONDS)
                for name, (_, kinds) in SEATS.items()
                for kind in kinds
            }

        one()  # first calls allocate memory and choose kernels
        turns = sum(len(kinds) for _, kinds in SEATS.values())
        print(f"{rounds} rounds of {turns} turns of {SECONDS:g} s, about {rounds * turns * SECONDS:.0f} s", flush=True)
        return [one() for _ in range(rounds)]


def check_ratios(ratios: Mapping[str, Ratio], take: Callable[[int], list[Turns]], rounds: int = ROUNDS) -> list[str]:
    """Measure and print every ratio, and once more those that fail. Returns a line for each that fails twice."""
    missed = _missed(ratios, take(rounds))
    if missed:
        print(f"once more: {len(missed)} missed", flush=True)
        missed = _missed({name: ratios[name] for name in missed}, take(rounds))
    return list(missed.values())


def _missed(ratios: Mapping[str, Ratio], taken: Sequence[Turns]) -> dict[str, str]:
    missed = {}
    for name, ratio in ratios.items():
        of_rounds = [ratio.of(turns) for turns in taken]
        median = statistics.median(of_rounds)
        line = f"{name}: {median:.2f} ({ratio}); rounds {' '.join(f'{figure:.2f}' for figure in of_rounds)}"
        print(f"  {line}", flush=True)
        if sum(ratio.holds(figure) for figure in of_rounds) <= MAY_KEEP * len(of_rounds):
            missed[name] = line
    return missed


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regression", description="has the code become slower?")
    parser.add_argument(
        "--write-budget", action="store_true", help="write the present counts as the new budget and stop"
    )
    arguments = parser.parse_args(argv)
    start = time.monotonic()
    misses = check_counts(arguments.write_budget)
    if not arguments.write_budget:
        misses += check_ratios(RATIOS, take)
    for line in misses:
        print(f"MISSED {line}")
    print(f"{len(misses)} missed; {time.monotonic() - start:.0f} s")
    return 1 if misses else 0


if __name__ == "__main__":
    raise SystemExit(main())
