"""What one GPU does with the learner and the whole trainer, in one call of under nine minutes: measurements flow in,
tables and `benchmarks/results/gpu.json`, written anew after each part, flow out.

Updates eager and captured by turns, the pieces of an update, the sum tree's children per node, and the whole loop with
its workers alone, its learner alone, and how long the GPU had nothing to do. Exit code 1 when a goal is missed, 2
without a GPU.

    python -m benchmarks.gpu
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atari_dqn.account import UPDATE_PARTS
from atari_dqn.config import LearnerConfig, NetworkConfig, TrainConfig
from atari_dqn.cuda_graph import Captured, CapturedLearner
from atari_dqn.envs.make import PROTOCOLS, env_spec
from atari_dqn.learner import Learner, resolve_precision
from atari_dqn.measure import Bench, Rates
from atari_dqn.network import make_network
from atari_dqn.replay import SumTree, sum_tree
from atari_dqn.replay.prioritized import PrioritizedReplay
from atari_dqn.system import describe_system
from atari_dqn.trainer import Trainer
from benchmarks.plain_learner import FixedReplay, Spec

RESULTS = Path(__file__).parent / "results" / "gpu.json"
SEED = 1
REPEATS = 10
"""Of a piece of an update within one graph: what launching a graph costs is the update's, not the piece's."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured, and for how long."""

    env_id: str = "ALE/Breakout-v5"
    capacity: int = 2**20
    fill_envs: int = 512
    heads: tuple[Any, ...] = ("shared", "two_stream")
    batch_sizes: tuple[int, ...] = (32, 256, 512)
    fanouts: tuple[int, ...] = (64, 256, 1024)
    turn: float = 0.6
    """seconds"""
    rounds: int = 5
    loops: tuple[tuple[int, int, int], ...] = ((16, 4, 256), (16, 4, 512), (16, 8, 256), (16, 8, 512))
    """workers, envs of each, batch size"""
    learning_starts: int = 50_000
    loop_turn: float = 3.0
    loop_rounds: int = 3


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="updates and loop on one GPU")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--only", choices=["updates", "loop"], help="one half of it")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("benchmarks.gpu measures a GPU, and torch finds none here")
        return 2
    torch.set_num_threads(1)  # the cores are the workers'
    device, plan, parts = torch.device("cuda"), Plan(), {}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()

    def tell(line: str) -> None:
        print(f"[{time.monotonic() - start:4.0f} s] {line}", flush=True)

    jobs: dict[str, Callable[[], Any]] = {}
    if arguments.only != "loop":
        jobs["updates"] = lambda: updates(plan, device, tell)
        jobs["fanouts"] = lambda: fanouts(plan, device)
    if arguments.only != "updates":
        jobs["loops"] = lambda: loops(plan, device, tell)
    tell(f"{' and '.join(jobs)} on {torch.cuda.get_device_name()}; about {expected_seconds(plan, jobs):.0f} s in all")
    for name, job in jobs.items():
        parts[name] = job()
        report = {
            "system": describe_system() | {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda},
            "plan": dataclasses.asdict(plan),
            **parts,
            "goals": goals(parts.get("updates", []), parts.get("loops", [])),
        }
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    return 0 if all(goal["holds"] for goal in report["goals"]) else 1


def expected_seconds(plan: Plan, jobs: Iterable[str]) -> float:
    """Turns, and what was found (on slower machines) to come on top of them: filling, first calls, spawning."""
    of_updates = len(plan.heads) * len(plan.batch_sizes) * (2 * plan.rounds * plan.turn + 5 * plan.turn + 4) + 20
    of_loops = len(plan.loops) * (plan.loop_rounds * (2 * plan.loop_turn + plan.turn) + plan.loop_turn + 25)
    return of_updates * ("updates" in jobs) + of_loops * ("loops" in jobs)


# ---------------------------------------------------------------------- updates


def updates(plan: Plan, device: torch.device, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """One entry per head and batch size: updates/s of both kinds, and microseconds of the captured one's pieces."""
    replay = full_replay(plan, device)
    tell(f"a replay of {plan.capacity:,} transitions is full")
    found = []
    for head in plan.heads:
        for batch_size in plan.batch_sizes:
            figures = {"head": head, "batch_size": batch_size, **one_update(plan, device, replay, head, batch_size)}
            tell(
                f"{head}, batch {batch_size}: {figures['eager']:,.0f} updates/s eager,"
                f" {figures['captured']:,.0f} captured"
            )
            found.append(figures)
            gc.collect()  # graphs, and the memory they hold
    return found


def full_replay(plan: Plan, device: torch.device) -> PrioritizedReplay:
    """Noise for frames, an end now and then, and priorities that differ."""
    num_envs, frame = plan.fill_envs, (84, 84)
    replay = PrioritizedReplay(
        plan.capacity, num_envs, frame, torch.uint8, 4, n_step=3, gamma=0.99, clip_rewards=True, alpha=0.6,
        seed=SEED, device=device,
    )  # fmt: skip
    rng = np.random.default_rng(SEED)
    noise = torch.randint(256, (num_envs, *frame), dtype=torch.uint8, device=device)
    replay.append(noise, np.ones(num_envs, bool))
    for row in range(replay.num_rows + 4):
        ends = rng.random(num_envs) < 1 / 500
        actions, rewards = rng.integers(4, size=num_envs), rng.normal(size=num_envs)
        replay.append(noise.roll(row, -1), ends, actions, rewards, ends)
    leaves = replay.tree.leaves
    replay.tree.load(torch.where(leaves > 0, torch.rand_like(leaves), leaves))
    return replay


def one_update(
    plan: Plan, device: torch.device, replay: PrioritizedReplay, head: Any, batch_size: int
) -> dict[str, Any]:
    """Each is fed from the same replay."""
    config = LearnerConfig(batch_size=batch_size)
    precision = resolve_precision("auto", device, deterministic=False)

    def learner(kind: type[Learner], feed: Any) -> Learner:
        def network() -> Any:
            return make_network(Spec(), NetworkConfig(head=head))

        return kind(network, feed, config, seed=SEED, device=device, precision=precision)

    def recorded(work: Callable[[], object]) -> Callable[[], object]:
        def repeated() -> None:
            for _ in range(REPEATS):
                work()

        return Captured(repeated, device, replay.generator) if device.type == "cuda" else repeated

    captured = learner(CapturedLearner if device.type == "cuda" else Learner, replay)
    eager = learner(Learner, replay)
    works: dict[str, Callable[[], object]] = {"captured": captured.update, "eager": eager.update}
    for work in works.values():
        for _ in range(6):  # the recording among them
            work()
    rates = by_turns(works, plan.turn, plan.rounds, device)

    batch = replay.sample(batch_size)
    batch = dataclasses.replace(batch, obs=batch.obs.clone(), next_obs=batch.next_obs.clone())
    errors = torch.randn(batch_size, device=device)
    mass = torch.rand(batch_size, dtype=torch.float64, device=device) * replay.tree.total
    alone = learner(Learner, FixedReplay([batch]))
    alone.gradient_step()
    pieces = {
        "draw": recorded(lambda: replay.tree.find(mass)),
        "sample": recorded(lambda: replay.sample(batch_size)),
        "priorities": recorded(lambda: replay.update_priorities(batch.ids, errors)),
        "network and Adam": recorded(alone.gradient_step),
        "Adam": recorded(alone.optimizer.step),
    }
    for work in pieces.values():
        for _ in range(6):
            work()
    times = {name: 1e6 / rate / REPEATS for name, rate in by_turns(pieces, plan.turn / 2, 2, device).items()}
    whole = 1e6 / rates["captured"]
    return {
        **rates,
        "microseconds": {"whole": whole} | times,
        "tree_share": (times["draw"] + times["priorities"]) / whole,
        "precision": precision,
        "gpu_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
    }


def by_turns(
    works: dict[str, Callable[[], object]], seconds: float, rounds: int, device: torch.device
) -> dict[str, float]:
    """Calls a second of each: medians over rounds in which each has its turn."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            rates[name].append(calls_per_second(work, seconds, device))
    return {name: statistics.median(of_rounds) for name, of_rounds in rates.items()}


def calls_per_second(work: Callable[[], object], seconds: float, device: torch.device) -> float:
    """The GPU's own work included: it is waited for at both ends."""
    _wait(device)
    start, calls = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(10):
            work()
        calls += 10
        _wait(device)  # now and then, or thousands of launches would queue
    return calls / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fanouts(plan: Plan, device: torch.device) -> list[dict[str, Any]]:
    """Microseconds of a draw and a write of 256, captured, for trees of different children per node."""
    found, before = [], dict(sum_tree.FANOUT)
    leaves = torch.randint(plan.capacity, (256,), device=device)
    values = torch.rand(256, dtype=torch.float64, device=device)
    for fanout in plan.fanouts:
        sum_tree.FANOUT.update(dict.fromkeys(before, fanout))
        tree = SumTree(plan.capacity, device)
        tree.load(torch.rand(plan.capacity, dtype=torch.float64, device=device))
        mass = values * tree.total
        works: dict[str, Callable[[], object]] = {
            "draw": lambda tree=tree, mass=mass: tree.find(mass),  # type: ignore[misc]
            "write": lambda tree=tree: tree.write(leaves, values),  # type: ignore[misc]
        }
        if device.type == "cuda":
            works = {name: Captured(work, device) for name, work in works.items()}
        for work in works.values():
            for _ in range(6):
                work()
        rates = by_turns(works, plan.turn / 2, 3, device)
        found.append({"children": fanout} | {name: 1e6 / rate for name, rate in rates.items()})
    sum_tree.FANOUT.update(before)
    return found


# ---------------------------------------------------------------------- the whole loop


def loops(plan: Plan, device: torch.device, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """One entry per shape of `plan.loops`, at the default replay ratio, which is 8."""
    found = []
    for num_workers, envs_per_worker, batch_size in plan.loops:
        config = TrainConfig().replace(
            env_id=plan.env_id,
            num_workers=num_workers,
            envs_per_worker=envs_per_worker,
            batch_size=batch_size,
            n_step=3,
            replay_capacity=plan.capacity,
            learning_starts=plan.learning_starts,
            device=device.type,
        )
        name = f"{num_workers}x{envs_per_worker} envs, batch {batch_size}"
        tell(f"{name}: starting the workers, {plan.learning_starts:,} env steps of random play")
        figures = one_loop(plan, config.validate())
        tell(
            f"{name}: {figures['loop']:,.0f} env steps/s, {figures['share_of_workers']:.0%} of the workers alone;"
            f" {figures['reason']}"
        )
        found.append({"envs": config.num_envs, "batch_size": batch_size} | figures)
        gc.collect()
    return found


def one_loop(plan: Plan, config: TrainConfig) -> dict[str, Any]:
    trainer = Trainer(config, env_spec(config.env.env_id, PROTOCOLS[config.env.protocol], config.env.frame_stack))
    bench = Bench(trainer)
    try:
        bench.prepare()
        turns: dict[str, list[Any]] = {"workers": [], "learner": [], "loop": []}
        for _ in range(plan.loop_rounds):
            turns["workers"].append(bench.workers_alone(plan.loop_turn))
            turns["learner"].append(bench.learner_alone(plan.turn))
            turns["loop"].append(bench.loop(plan.loop_turn))
        busy = gpu_busy(bench, min(0.5, plan.turn), trainer.device)
        account = bench.account(plan.loop_turn).shares
    finally:
        trainer.close()
    rates = {kind: Rates.of(taken) for kind, taken in turns.items()}
    workers, loop = rates["workers"].env_steps_per_second, rates["loop"].env_steps_per_second
    due = config.learner.replay_ratio / config.learner.batch_size
    learner = rates["learner"].updates_per_second / due
    return {
        "workers": workers,
        "learner": learner,
        "loop": loop,
        "updates_per_second": rates["loop"].updates_per_second,
        "share_of_workers": loop / workers,
        "cores_busy": rates["loop"].cores_busy,
        "gpu_idle": None if busy is None else 1 - busy,
        "account": account,
        "reason": reason(workers, learner, loop, account),
    }


def gpu_busy(bench: Bench, seconds: float, device: torch.device) -> float | None:
    """Share of the loop's time in which the GPU does something; None where it cannot be traced."""
    if device.type != "cuda":
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        turn = bench.loop(seconds)
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profile.events() or ()
        if event.device_type == torch.autograd.DeviceType.CUDA and not getattr(event, "is_user_annotation", False)
    ]
    return covered(spans) / (1e6 * turn.wall) if spans else None


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals (start, end)."""
    total, reached = 0.0, -float("inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def reason(workers: float, learner: float, loop: float, account: dict[str, float]) -> str:
    """Why the GPU waits, or does not. Rates are env steps/s: of the workers alone, the learner alone, and the loop."""
    if loop > 0.9 * min(workers, learner):
        limit = "the emulators: the GPU waits for them" if workers < learner else "the updates: the GPU is busy"
        return f"the limit is {limit}"
    between = {part: share for part, share in account.items() if part not in ("env", "idle", *UPDATE_PARTS)}
    part = max(between, key=lambda name: between[name])
    return f"between updates and emulators; {part} takes most there, {between[part]:.0%} of the loop's time"


# ---------------------------------------------------------------------- goals and tables


def goals(updates: Sequence[dict[str, Any]], loops: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each with its figure, its bound, and whether it holds. A loop need only be fast enough in one of its shapes."""
    found: list[dict[str, Any]] = []

    def goal(name: str, figure: float, bound: float, at_least: bool = True) -> None:
        holds = figure >= bound if at_least else figure <= bound
        found.append({"goal": name, "figure": figure, "bound": bound, "at_least": at_least, "holds": holds})

    for each in updates:
        times, rate = {32: (5.0, 3_000.0), 256: (2.0, 1_500.0)}.get(each["batch_size"], (None, None))
        name = f"{each['head']}, batch {each['batch_size']}"
        if times is not None and rate is not None:
            goal(f"{name}: captured / eager updates", each["captured"] / each["eager"], times)
            goal(f"{name}: captured updates/s", each["captured"], rate)
        goal(f"{name}: the tree's share of an update", each["tree_share"], 0.05, at_least=False)
    if loops:
        best = max(loops, key=lambda each: each["loop"] / min(25_000.0, 0.9 * each["workers"]))
        name = f"loop of {best['envs']} envs, batch {best['batch_size']}: env steps/s"
        goal(name, best["loop"], min(25_000.0, 0.9 * best["workers"]))
    return found


def show(report: dict[str, Any]) -> None:
    """Print the report as tables."""
    from rich.console import Console

    console = Console(width=120)
    if "updates" in report:
        pieces = list(report["updates"][0]["microseconds"])
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
            for each in report["updates"]
        ]
        console.print(_table("updates", columns, rows))
    if "fanouts" in report:
        rows = [[str(each["children"]), f"{each['draw']:.1f}", f"{each['write']:.1f}"] for each in report["fanouts"]]
        console.print(_table("the sum tree, 256 at a time", ["children", "draw, µs", "write, µs"], rows))
    if "loops" in report:
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
            for each in report["loops"]
        ]
        console.print(_table("the loop, env steps/s", columns, rows))
        for each in report["loops"]:
            console.print(f"{each['envs']} envs, batch {each['batch_size']}: {each['reason']}", highlight=False)
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
