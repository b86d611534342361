"""The present code flows in; whether it got slower, as far as any machine can tell, flows out: the check of CI.

Two kinds of figures. Exact counts (`benchmarks.counts`) must not exceed `benchmarks/budget.json`. Ratios of two things
measured in turn on the same machine must keep to bounds generous enough for a noisy one. Noise moves some rounds, a
regression nearly all: a ratio misses only when hardly a round keeps to its bound, and then again with contestants
started anew. Exit code 1, with a line for each miss.

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

if TYPE_CHECKING:  # torch is for the contestants, each in its own process
    from atari_dqn.diagnostics.measure import Turn

    Turns = Mapping[str, Turn]

BUDGET = Path(__file__).parent / "budget.json"
HARD = {"replay: bytes a transition": 7200, "workers: bytes through pipes a worker and tick": 2}
"""What no budget may exceed: promises of this project, not habits of the code."""
WELL_UNDER = 0.9
"""Below this part of its budget a figure asks for a lower one."""

BATCH, ROUNDS, SECONDS = 32, 12, 0.2
MAY_KEEP = 1 / 6
"""Of the rounds of a ratio that misses, so many may keep to the bound all the same."""
THREADS = min(cores(), 2)
"""As many on a large machine as on a small one: the ratios are to be the same."""
SEATS: dict[str, tuple[tuple[Any, ...], Sequence[str]]] = {
    "workers": ((worker_pool, 2), [""]),
    "native": ((native_vector_env, 2), [""]),
    "fp32": ((learner, "fp32", THREADS, BATCH), ["fixed", "replay"]),
    "plain": ((learner, "plain", THREADS, BATCH), ["fixed"]),
    "whole": ((whole, 2, 4, THREADS, BATCH, 256), ["envs", "learner", "loop"]),
}
"""Contestants, and the kinds of turns that are taken of each."""


class Ratio(NamedTuple):
    """One that must keep to its bound; of the turns of one round."""

    of: Callable[[Turns], float]
    least: float | None = None
    most: float | None = None

    def holds(self, figure: float) -> bool:
        return (self.least is None or figure >= self.least) and (self.most is None or figure <= self.most)

    def __str__(self) -> str:
        return f"≥ {self.least}" if self.least is not None else f"≤ {self.most}"


def _updates(turn: Turn) -> float:
    return turn.updates / turn.wall


def _env_steps(turn: Turn) -> float:
    return turn.env_steps / turn.wall


RATIOS = {
    "updates/s, fp32 over plain": Ratio(lambda t: _updates(t["fp32 fixed"]) / _updates(t["plain fixed"]), least=1.0),
    "updates/s, drawn batches over ready ones": Ratio(
        lambda t: _updates(t["fp32 replay"]) / _updates(t["fp32 fixed"]), least=0.8
    ),
    "env steps/s, our workers over AtariVectorEnv": Ratio(
        lambda t: _env_steps(t["workers"]) / _env_steps(t["native"]), least=0.6
    ),
    "time of the loop over its limit": Ratio(
        lambda t: over_limits("whole", dict(t), BATCH)["whole / the largest"], most=1.5
    ),
}


# ---------------------------------------------------------------------- counts


def over_budget(figures: Mapping[str, int], budget: Mapping[str, int]) -> list[str]:
    """A line for each figure that exceeds its budget or `HARD`, has none, or is in the budget only."""
    lines = []
    for name in (*figures, *(name for name in budget if name not in figures)):
        if name not in figures:
            lines.append(f"{name}: has a budget of {budget[name]:,} and is no longer counted")
        elif name not in budget:
            lines.append(f"{name}: {figures[name]:,}, and has no budget")
        else:
            most = min(budget[name], HARD.get(name, budget[name]))
            if figures[name] > most:
                lines.append(f"{name}: {figures[name]:,}, over its budget of {most:,}")
    return lines


def well_under(figures: Mapping[str, int], budget: Mapping[str, int]) -> list[str]:
    """A line for each figure so far below its budget that the budget would not notice if it came back."""
    return [
        f"{name}: {figure:,}, well under its budget of {budget[name]:,}"
        for name, figure in figures.items()
        if name in budget and figure < WELL_UNDER * budget[name]
    ]


def check_counts(write: bool) -> list[str]:
    """Count, compare, say what could be lower. Returns the misses."""
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
    """So many rounds of everyone's turns, one dict of them for each round; the contestants are started for it."""
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

        one()  # first calls allocate, and choose their kernels
        turns = sum(len(kinds) for _, kinds in SEATS.values())
        print(f"{rounds} rounds of {turns} turns of {SECONDS:g} s, about {rounds * turns * SECONDS:.0f} s", flush=True)
        return [one() for _ in range(rounds)]


def check_ratios(ratios: Mapping[str, Ratio], take: Callable[[int], list[Turns]], rounds: int = ROUNDS) -> list[str]:
    """Measure, and once more what missed; print every ratio. Returns the misses."""
    missed = _missed(ratios, take(rounds))
    if missed:
        print(f"once more, for {len(missed)} missed", flush=True)
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regression", description="has the code got slower?")
    parser.add_argument("--write-budget", action="store_true", help="make the present counts the budget, and stop")
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
