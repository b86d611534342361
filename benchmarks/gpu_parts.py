"""The measurements of `benchmarks.gpu`; their results are JSON-ready.

For their tests they also run on a CPU, without CUDA graphs.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from atari_dqn.agent.cuda_graph import Captured, CapturedLearner
from atari_dqn.agent.device import resolve_precision
from atari_dqn.agent.learner import Learner
from atari_dqn.agent.network import make_network
from atari_dqn.config.schema import LearnerConfig, NetworkConfig, TrainConfig
from atari_dqn.diagnostics.measure import Bench, Rates
from atari_dqn.diagnostics.profiler import UPDATE_PARTS
from atari_dqn.envs.make import spec_of
from atari_dqn.replay import sum_tree
from atari_dqn.replay.prioritized import PrioritizedReplay
from atari_dqn.replay.sum_tree import SumTree
from atari_dqn.training.assembly import local_trainer
from benchmarks.plain_learner import FixedReplay, Spec

SEED = 1
REPEATS = 10
"""Repetitions of a piece within one graph, so that the cost of launching the graph does not count as the piece's."""


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
    """Length of a turn in seconds."""
    rounds: int = 5
    loops: tuple[tuple[int, int, int], ...] = ((16, 4, 256), (16, 4, 512), (16, 8, 256), (16, 8, 512))
    """Number of workers, envs per worker, batch size."""
    learning_starts: int = 50_000
    loop_turn: float = 3.0
    loop_rounds: int = 3


def attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Result of `work`, or its `error`, so that one failure does not lose the other results."""
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}"[:1_000]}


# ---------------------------------------------------------------------- updates


def updates(plan: Plan, device: torch.device, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """One entry per head and batch size: updates/s eager and captured, and microseconds of the pieces of the latter.

    `draw` and `write` are calls of the sum tree; `sample` is the draw and the gathering of frames; `learn` is all
    that follows from a given batch, Adam included.
    """
    replay = full_replay(plan, device)
    tell(f"filled a replay of {plan.capacity:,} transitions")
    found = []
    for head in plan.heads:
        for batch_size in plan.batch_sizes:
            figures = attempt(lambda head=head, size=batch_size: one_update(plan, device, replay, head, size))  # type: ignore[misc]
            rates = "{eager:,.0f} updates/s eager, {captured:,.0f} captured"
            tell(f"{head}, batch {batch_size}: {figures.get('error') or rates.format_map(figures)}")
            found.append({"head": head, "batch_size": batch_size} | figures)
            gc.collect()  # free the graphs and their memory
    return found


def full_replay(plan: Plan, device: torch.device) -> PrioritizedReplay:
    """A full replay of random frames, with ends of games and different priorities."""
    num_envs, frame = plan.fill_envs, (84, 84)
    replay = PrioritizedReplay(
        plan.capacity, num_envs, frame, np.uint8, 4, n_step=3, gamma=0.99, clip_rewards=True, alpha=0.6,
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
    """Measure eager and captured updates from one replay, and the pieces of an update."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
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
        for _ in range(6):  # this includes the capture
            work()
    rates = by_turns(works, plan.turn, plan.rounds, device)

    batch = replay.sample(batch_size)
    batch = dataclasses.replace(batch, obs=batch.obs.clone(), next_obs=batch.next_obs.clone())
    errors = torch.randn(batch_size, device=device)
    mass = torch.rand(batch_size, dtype=torch.float64, device=device) * replay.tree.total
    alone = learner(Learner, FixedReplay([batch]))
    alone.gradient_step()
    alone.learning_rate.fill_(0)  # the same work; thousands of steps on one batch would diverge
    pieces = {
        "draw": recorded(lambda: replay.tree.find(mass)),
        "sample": recorded(lambda: replay.sample(batch_size)),
        "write": recorded(lambda: replay.update_priorities(batch.ids, errors)),
        "learn": recorded(alone.gradient_step),
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
        "tree_share": (times["draw"] + times["write"]) / whole,
        "precision": precision,
        "gpu_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else 0,
    }


def by_turns(
    works: dict[str, Callable[[], object]], seconds: float, rounds: int, device: torch.device
) -> dict[str, float]:
    """Calls per second of each work: medians over rounds of one turn each."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            rates[name].append(calls_per_second(work, seconds, device))
    return {name: statistics.median(of_rounds) for name, of_rounds in rates.items()}


def calls_per_second(work: Callable[[], object], seconds: float, device: torch.device) -> float:
    """Calls per second, including the GPU's work: it is synchronized at both ends."""
    _wait(device)
    start, calls, spent = time.perf_counter(), 0, 0.0
    while not calls or spent < seconds:
        for _ in range(10):
            work()
        calls += 10
        _wait(device)  # now and then, so that the queue of launches stays short
        spent = time.perf_counter() - start
    return calls / spent


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def compiled(plan: Plan, device: torch.device, backend: str = "inductor") -> list[dict[str, Any]]:
    """Captured updates/s with the network and the replay compiled by torch, to see what fused kernels would give.

    An experiment: nothing else depends on it, and a failure is a result.
    """
    found: list[dict[str, Any]] = []
    for batch_size in plan.batch_sizes:
        replay = full_replay(plan, device)
        learner = (CapturedLearner if device.type == "cuda" else Learner)(
            lambda: make_network(Spec(), NetworkConfig()),
            replay,
            LearnerConfig(batch_size=batch_size),
            seed=SEED,
            device=device,
            precision=resolve_precision("auto", device, deterministic=False),
        )
        parts: list[tuple[Any, str]] = [
            (replay.tree, "find"), (replay.tree, "write"),
            (replay.ring, "n_step_returns"), (replay.ring, "observations"),
            (learner.policy, "q_values"), (learner.target_policy, "q_values"),
        ]  # fmt: skip
        for owner, method in parts:
            setattr(owner, method, torch.compile(getattr(owner, method), backend=backend, dynamic=False))

        def measure(learner: Learner = learner) -> dict[str, Any]:
            start = time.monotonic()
            for _ in range(6):
                learner.update()
            took = time.monotonic() - start
            rate = by_turns({"": learner.update}, plan.turn, plan.rounds, device)[""]
            return {"updates_per_second": rate, "compiling_seconds": took}

        found.append({"batch_size": batch_size} | attempt(measure))
        del replay, learner, parts, measure
        gc.collect()
    return found


def fanouts(plan: Plan, device: torch.device) -> list[dict[str, Any]]:
    """Microseconds of a captured draw and write of 256, for trees with different numbers of children per node."""
    found, before = [], dict(sum_tree.FANOUT)
    leaves = torch.randint(plan.capacity, (256,), device=device)
    values = torch.rand(256, dtype=torch.float64, device=device)

    def measure() -> dict[str, Any]:
        tree = SumTree(plan.capacity, device)
        tree.load(torch.rand(plan.capacity, dtype=torch.float64, device=device))
        mass = values * tree.total
        works: dict[str, Callable[[], object]] = {
            "draw": lambda: tree.find(mass),
            "write": lambda: tree.write(leaves, values),
        }
        if device.type == "cuda":
            works = {name: Captured(work, device) for name, work in works.items()}
        for work in works.values():
            for _ in range(6):
                work()
        rates = by_turns(works, plan.turn / 2, 3, device)
        return {name: 1e6 / rate for name, rate in rates.items()}

    for fanout in plan.fanouts:
        sum_tree.FANOUT.update(dict.fromkeys(before, fanout))
        found.append({"children": fanout} | attempt(measure))
    sum_tree.FANOUT.update(before)
    return found


# ---------------------------------------------------------------------- the whole loop


def loops(plan: Plan, device: torch.device, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """One entry per shape in `plan.loops`, with the default replay ratio of 8."""
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
        figures = attempt(lambda config=config: one_loop(plan, config.validate()))  # type: ignore[misc]
        rates = "{loop:,.0f} env steps/s, {share_of_workers:.0%} of the workers alone; {reason}"
        tell(f"{name}: {figures.get('error') or rates.format_map(figures)}")
        found.append({"envs": config.num_envs, "batch_size": batch_size} | figures)
        gc.collect()
    return found


def one_loop(plan: Plan, config: TrainConfig) -> dict[str, Any]:
    trainer = local_trainer(config, spec_of(config.env))
    bench = Bench(trainer)
    try:
        bench.prepare()
        turns: dict[str, list[Any]] = {"workers": [], "learner": [], "loop": []}
        for _ in range(plan.loop_rounds):
            turns["workers"].append(bench.workers_alone(plan.loop_turn))
            turns["learner"].append(bench.learner_alone(plan.turn))
            turns["loop"].append(bench.loop(plan.loop_turn))
        busy = gpu_busy(bench, min(0.2, plan.turn), trainer.device)
        account = bench.account(plan.loop_turn)
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
    """Share of the loop's time in which the GPU is busy; None if it cannot be traced."""
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
    """Total length of the union of intervals (start, end)."""
    total, reached = 0.0, -float("inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def reason(workers: float, learner: float, loop: float, account: dict[str, float]) -> str:
    """Why the GPU is idle or busy, from the env steps/s of the workers alone, the learner alone, and the loop."""
    if loop > 0.9 * min(workers, learner):
        limit = "the emulators: the GPU waits for them" if workers < learner else "the updates: the GPU is busy"
        return f"the limit is {limit}"
    between = {part: share for part, share in account.items() if part not in ("waiting", *UPDATE_PARTS)}
    part = max(between, key=lambda name: between[name])
    return f"work between updates and emulators, mostly {part}: {between[part]:.0%} of the loop's time"
