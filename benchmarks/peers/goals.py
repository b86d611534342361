"""Figures of the report: rates and medians of the turns, and whether the goals are met."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.peers.memory import Memory
from benchmarks.peers.seats import Turn
from benchmarks.peers.work import CONTESTANTS, Work

OURS, SAME_PRECISION, PLAIN = "ours", "ours-fp32", "ours-plain"
SLACK = 0.05
"""Relative error allowed in the env steps per update: an update that ends within a turn counts for the next."""


def standing(name: str, turns: Sequence[Turn], peak: Memory, versions: Mapping[str, str]) -> dict[str, Any]:
    """Median rates of one contestant and the figures they are computed from, JSON-ready."""
    who = CONTESTANTS[name]
    return {
        "title": who.title,
        "version": versions[who.package],
        "prioritized": who.prioritized,
        "double": who.double,
        "dueling": who.dueling,
        "env_steps_per_second": statistics.median(turn.env_steps / turn.wall for turn in turns),
        "updates_per_second": statistics.median(turn.updates / turn.wall for turn in turns),
        "env_steps_per_update": sum(turn.env_steps for turn in turns) / max(1, sum(turn.updates for turn in turns)),
        "peak_memory_bytes": peak.each_page_once,
        "peak_resident_bytes": peak.resident,
        "turns": [dataclasses.asdict(turn) for turn in turns],
        "versions": dict(versions),
    }


def goals(standings: Mapping[str, Mapping[str, Any]], work: Work) -> list[dict[str, Any]]:
    """Every goal with its name, figure, bounds and whether it is met.

    Speed is ours over the peer's, taken within each round, the median over the rounds. The ratio at the peers'
    precision and that of plain DQN to plain DQN are reported without a bound. Memory is ours over the peer's.
    """
    found = []
    for name, peer in standings.items():
        ratio = peer["env_steps_per_update"] / work.env_steps_per_update
        found.append(_goal(f"{name} does the work", ratio, 1 - SLACK, 1 + SLACK))
    if OURS not in standings:
        return found
    ours = standings[OURS]
    for name, peer in standings.items():
        at_least = CONTESTANTS[name].at_least
        if at_least is None:
            continue
        found.append(_goal(f"env steps/s, ours / {name}", _ratio(ours, peer), at_least, None))
        also = (SAME_PRECISION, PLAIN) if CONTESTANTS[name].is_plain else (SAME_PRECISION,)
        for other in also:
            if other in standings:
                ratio = _ratio(standings[other], peer)
                found.append(_goal(f"env steps/s, {other} / {name}", ratio, None, None))
        found.append(_goal(f"memory, ours / {name}", ours["peak_memory_bytes"] / peer["peak_memory_bytes"], None, 1.0))
    return found


def _goal(name: str, figure: float, at_least: float | None, at_most: float | None) -> dict[str, Any]:
    holds = (at_least is None or figure >= at_least) and (at_most is None or figure <= at_most)
    return {"goal": name, "figure": figure, "at_least": at_least, "at_most": at_most, "holds": holds}


def _ratio(ours: Mapping[str, Any], peer: Mapping[str, Any]) -> float:
    pairs = zip(ours["turns"], peer["turns"], strict=True)
    return statistics.median(_rate(mine) / _rate(theirs) for mine, theirs in pairs)


def _rate(turn: Mapping[str, float]) -> float:
    return turn["env_steps"] / turn["wall"]
