"""Speed of the learner and of the whole trainer on one GPU, in less than nine minutes.

It measures updates, eager and captured in a CUDA graph; the parts of an update; sum trees with different numbers of
children per node; and the loop, with its workers alone, its learner alone and the time in which the GPU is idle. It
prints tables and writes `benchmarks/results/gpu.json` after each part. A part that fails is reported, and the others
are measured. Exit code 1: a goal was missed or something failed; 2: there is no GPU.

    python -m benchmarks.gpu
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from atari_dqn.system.machine import describe_system
from benchmarks import gpu_parts
from benchmarks.gpu_parts import Plan

RESULTS = Path(__file__).parent / "results" / "gpu.json"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="updates and loop on one GPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--only", choices=["updates", "loop", "compiled"], help="one part; compiled is not among the default ones"
    )
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("error: benchmarks.gpu needs a GPU, and torch finds none", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # the workers need the cores
    device, plan, parts = torch.device("cuda"), Plan(), {}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - start:4.0f} s] {line}", flush=True)

    jobs: dict[str, Callable[[], Any]] = {}
    if arguments.only == "compiled":
        jobs["compiled"] = lambda: gpu_parts.compiled(plan, device)
    if arguments.only in (None, "updates"):
        jobs["updates"] = lambda: gpu_parts.updates(plan, device, tell)
        jobs["fanouts"] = lambda: gpu_parts.fanouts(plan, device)
    if arguments.only in (None, "loop"):
        jobs["loops"] = lambda: gpu_parts.loops(plan, device, tell)
    tell(f"{' and '.join(jobs)} on {torch.cuda.get_device_name()}; about {expected_seconds(plan, jobs):.0f} s in all")
    for name, job in jobs.items():
        try:
            parts[name] = job()
        except Exception as error:  # of what all measurements of a part need, such as a full replay
            traceback.print_exc()
            parts[name] = [{"error": f"{type(error).__name__}: {error}"[:1_000]}]
        report = {
            "system": describe_system() | {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda},
            "plan": dataclasses.asdict(plan),
            **parts,
            "goals": goals(parts.get("updates", []), parts.get("loops", [])),
        }
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    complete = all(len(sound(found)) == len(found) for found in parts.values())
    return 0 if complete and all(goal["holds"] for goal in report["goals"]) else 1


def expected_seconds(plan: Plan, jobs: Iterable[str]) -> float:
    """Estimated duration: the turns, and what slower machines took for filling, first calls and starting processes."""
    of_updates = len(plan.heads) * len(plan.batch_sizes) * (2 * plan.rounds * plan.turn + 5 * plan.turn + 4) + 20
    of_loops = len(plan.loops) * (plan.loop_rounds * (2 * plan.loop_turn + plan.turn) + plan.loop_turn + 25)
    of_compiled = len(plan.batch_sizes) * (plan.rounds * plan.turn + 70)
    return of_updates * ("updates" in jobs) + of_loops * ("loops" in jobs) + of_compiled * ("compiled" in jobs)


# ---------------------------------------------------------------------- goals and tables


def goals(updates: Sequence[dict[str, Any]], loops: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every goal with its figure, its bound and whether it is met. The loop must be fast enough in one shape only."""
    found: list[dict[str, Any]] = []

    def goal(name: str, figure: float, bound: float, at_least: bool = True) -> None:
        holds = figure >= bound if at_least else figure <= bound
        found.append({"goal": name, "figure": figure, "bound": bound, "at_least": at_least, "holds": holds})

    for each in sound(updates):
        times, rate = {32: (5.0, 3_000.0), 256: (2.0, 1_500.0)}.get(each["batch_size"], (None, None))
        name = f"{each['head']}, batch {each['batch_size']}"
        if times is not None and rate is not None:
            goal(f"{name}: captured / eager updates", each["captured"] / each["eager"], times)
            goal(f"{name}: captured updates/s", each["captured"], rate)
        goal(f"{name}: the tree's share of an update", each["tree_share"], 0.05, at_least=False)
    if loops := sound(loops):
        best = max(loops, key=lambda each: each["loop"] / min(25_000.0, 0.9 * each["workers"]))
        name = f"loop of {best['envs']} envs, batch {best['batch_size']}: env steps/s"
        goal(name, best["loop"], min(25_000.0, 0.9 * best["workers"]))
    return found


def sound(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The measurements that did not fail."""
    return [each for each in found if "error" not in each]


def show(report: dict[str, Any]) -> None:
    """Print the report as tables."""
    from rich.console import Console

    console = Console(width=120)
    if updates := sound(report.get("updates", [])):
        pieces = list(updates[0]["microseconds"])
        columns = ["head", "batch", "eager/s", "captured/s", "times", *(f"{piece}, µs" for piece in pieces), "tree"]
        rows = [
            [
                each["head"],
                str(each["batch_size"]),
                f"{each['eager']:,.0f}",
                f"{each['captured']:,.0f}",
                f"{each['captured'] / each['eager']:.1f}",
                *(f"{each['microseconds'][piece]:,.0f}" for piece in pieces),
                f"{each['tree_share']:.1%}",
            ]
            for each in updates
        ]
        console.print(_table("updates", columns, rows))
    if fanouts := sound(report.get("fanouts", [])):
        rows = [[str(each["children"]), f"{each['draw']:.1f}", f"{each['write']:.1f}"] for each in fanouts]
        console.print(_table("the sum tree, 256 at a time", ["children", "draw, µs", "write, µs"], rows))
    for each in report.get("compiled", []):
        console.print(f"compiled: {each}", highlight=False, soft_wrap=True, markup=False)
    if loops := sound(report.get("loops", [])):
        columns = ["envs", "batch", "workers alone", "learner alone", "loop", "of workers", "updates/s", "GPU idle"]
        rows = [
            [
                str(each["envs"]),
                str(each["batch_size"]),
                *(f"{each[kind]:,.0f}" for kind in ("workers", "learner", "loop")),
                f"{each['share_of_workers']:.0%}",
                f"{each['updates_per_second']:,.0f}",
                "?" if each["gpu_idle"] is None else f"{each['gpu_idle']:.0%}",
            ]
            for each in loops
        ]
        console.print(_table("the loop, env steps/s", columns, rows))
        for each in loops:
            console.print(f"{each['envs']} envs, batch {each['batch_size']}: {each['reason']}", highlight=False)
    for part in ("updates", "fanouts", "loops"):
        for each in report.get(part, []):
            if "error" in each:
                console.print(f"{part}: {each}", highlight=False, soft_wrap=True, markup=False)
    rows = [
        [each["goal"], f"{each['figure']:,.3g}", f"{'≥' if each['at_least'] else '≤'} {each['bound']:,g}",
         "yes" if each["holds"] else "NO"]
        for each in report["goals"]
    ]  # fmt: skip
    console.print(_table("goals", ["", "figure", "bound", "holds"], rows))


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    return table


if __name__ == "__main__":
    raise SystemExit(main())
