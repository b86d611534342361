"""Speed ratios with bounds: our workers, learner and loop compared with the alternatives, on this machine.

Each contestant runs in a process of its own (so that its allocator settings, threads and caches affect no other) and
waits while the others are measured. They take short turns, in rounds; a ratio is taken within each round, and its
median is reported. It prints tables and writes `benchmarks/results/ratios.json`. Exit code 1: a ratio missed its bound.

    python -m benchmarks.ratios
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atari_dqn.cli.command import BAD_INPUT
from atari_dqn.config.schema import LearnerConfig, NetworkConfig, TrainConfig
from atari_dqn.system.machine import cores, describe_system
from benchmarks.seats import Kinds, Seat

if TYPE_CHECKING:  # torch is for the contestants, each in its own process
    from atari_dqn.diagnostics.measure import Turn

RESULTS = Path(__file__).parent / "results" / "ratios.json"
GAME, NUM_ENVS, SEED = "ALE/Breakout-v5", 8, 1
CONFIG = TrainConfig().replace(env_id=GAME)
WHOLE = ((CONFIG.env.num_workers, CONFIG.env.envs_per_worker), (8, 1), (2, 4))
"""Numbers of workers and envs per worker of the measured loops: the default, and those of the workers alone."""


# ---------------------------------------------------------------------- the contestants


@contextlib.contextmanager
def worker_pool(num_workers: int) -> Iterator[Kinds]:
    """Our workers, without learner and replay."""
    from atari_dqn.diagnostics.measure import RandomPlay, measure
    from atari_dqn.envs.make import spec_of
    from atari_dqn.envs.protocol import PROTOCOLS
    from atari_dqn.workers.pool import WorkerPool

    protocol = PROTOCOLS[CONFIG.env.protocol]
    spec = spec_of(CONFIG.env)
    share = NUM_ENVS // num_workers
    with WorkerPool(spec, protocol, num_workers=num_workers, envs_per_worker=share, seed=SEED) as workers:
        workers.reset()
        play = RandomPlay(workers, SEED)
        yield {"": lambda seconds: measure(play.tick, seconds, env_steps=lambda: play.env_steps)}


@contextlib.contextmanager
def native_vector_env(num_threads: int) -> Iterator[Kinds]:
    """ale-py's threads in one process, with the same preprocessing and random actions."""
    import numpy as np
    from ale_py.vector_env import AtariVectorEnv
    from gymnasium.vector import AutoresetMode

    from atari_dqn.diagnostics.measure import measure
    from atari_dqn.envs.protocol import PROTOCOLS

    protocol = PROTOCOLS[CONFIG.env.protocol]
    env = AtariVectorEnv(
        "breakout",
        NUM_ENVS,
        num_threads=num_threads,
        stack_num=1,
        max_num_frames_per_episode=protocol.max_episode_frames,
        repeat_action_probability=protocol.repeat_action_probability,
        full_action_space=protocol.full_action_space,
        noop_max=protocol.noop_max,
        use_fire_reset=False,
        reward_clipping=False,
        autoreset_mode=AutoresetMode.NEXT_STEP,
    )
    env.reset(seed=np.arange(NUM_ENVS))
    rng = np.random.default_rng(SEED)
    num_actions = int(env.single_action_space.n)  # type: ignore[attr-defined]
    env_steps, resets = 0, 0

    def tick() -> None:
        nonlocal env_steps, resets
        _, _, terminated, truncated, _ = env.step(rng.integers(num_actions, size=NUM_ENVS))
        env_steps += NUM_ENVS - resets
        resets = int(np.count_nonzero(terminated | truncated))  # for these the next tick is a reset

    yield {"": lambda seconds: measure(tick, seconds, env_steps=lambda: env_steps)}
    env.close()


@contextlib.contextmanager
def learner(kind: str, threads: int, batch_size: int) -> Iterator[Kinds]:
    """Updates on given batches ("fixed"), and on batches drawn from a full prioritized replay ("replay")."""
    import torch

    from atari_dqn.agent.learner import Learner
    from atari_dqn.agent.network import make_network
    from atari_dqn.diagnostics.measure import measure
    from atari_dqn.replay.prioritized import PrioritizedReplay
    from benchmarks.plain_learner import FixedReplay, PlainLearner, Spec, random_batch

    torch.set_flush_denormal(True)  # as `set_up_torch`
    torch.set_num_threads(threads)
    generator, device, spec = torch.Generator().manual_seed(SEED), torch.device("cpu"), Spec()
    config = LearnerConfig(batch_size=batch_size)
    drawn = PrioritizedReplay(
        2**14, NUM_ENVS, (84, 84), "uint8", 4, n_step=1, gamma=0.99, clip_rewards=True, alpha=0.6, seed=SEED
    )
    nothing = torch.zeros(NUM_ENVS, dtype=torch.bool)
    frames = torch.randint(256, (NUM_ENVS, 84, 84), generator=generator, dtype=torch.uint8)
    drawn.append(frames, ~nothing)
    for row in range(drawn.num_rows + 1):
        drawn.append(frames.roll(row, -1), nothing, nothing.long(), nothing.float(), nothing)
    feeds = {"fixed": FixedReplay([random_batch(generator, batch_size) for _ in range(8)]), "replay": drawn}

    def turn(replay: Any) -> Callable[[float], Turn]:
        seat: Any
        if kind == "plain":
            # Not from a `Learner`, which would tune the allocator of this process.
            seat = PlainLearner(make_network(spec, NetworkConfig()).reference(), replay, config)
        else:
            seat = Learner(
                lambda: make_network(spec, NetworkConfig()),
                replay,
                config,
                seed=SEED,
                device=device,
                precision="bf16" if kind == "bf16" else "fp32",
            )
        return lambda seconds: measure(seat.update, seconds, updates=lambda: seat.updates)

    yield {name: turn(replay) for name, replay in feeds.items()}


@contextlib.contextmanager
def whole(
    num_workers: int,
    envs_per_worker: int,
    threads: int,
    batch_size: int,
    learning_starts: int = CONFIG.learner.learning_starts,
) -> Iterator[Kinds]:
    """The training loop at the default replay ratio, and its workers and learner alone."""
    from atari_dqn.agent.device import set_up_torch
    from atari_dqn.diagnostics.measure import Bench
    from atari_dqn.envs.make import spec_of
    from atari_dqn.training.assembly import local_trainer

    config = CONFIG.replace(
        num_workers=num_workers,
        envs_per_worker=envs_per_worker,
        device="cpu",
        batch_size=batch_size,
        learning_starts=learning_starts,
        torch_threads=threads,
    )
    set_up_torch(config)
    trainer = local_trainer(config, spec_of(config.env))
    bench = Bench(trainer)
    try:
        bench.prepare()
        yield {"envs": bench.workers_alone, "learner": bench.learner_alone, "loop": bench.loop}
    finally:
        trainer.close()


# ---------------------------------------------------------------------- taking turns


def play(rounds: int, seconds: float, threads: int, batch_size: int) -> list[dict[str, Turn]]:
    """Take the turns. Returns a dict per round, with a turn for each `contestant kind`."""
    contestants: dict[str, tuple[Any, ...]] = {
        "workers 8x1": (worker_pool, 8),
        "workers 2x4": (worker_pool, 2),
        "AtariVectorEnv": (native_vector_env, 2),
        "bf16": (learner, "bf16", threads, batch_size),
        "fp32": (learner, "fp32", threads, batch_size),
        "plain": (learner, "plain", threads, batch_size),
        **{f"whole {w}x{e}": (whole, w, e, threads, batch_size) for w, e in WHOLE},
    }
    taken: list[dict[str, Turn]] = []
    with contextlib.ExitStack() as stack:
        seats = {}
        for name, contestant in contestants.items():
            print(f"preparing {name}", flush=True)
            seats[name] = Seat(*contestant)
            stack.callback(seats[name].close)
        kinds = sum(len(seat.kinds) for seat in seats.values())
        print(f"{rounds} rounds of {kinds} turns of {seconds:g} s, {rounds * kinds * seconds:.0f} s in all", flush=True)
        for number in range(rounds + 1):
            start = time.monotonic()
            warm_up = number == 0
            turns = {
                f"{name} {kind}".strip(): seat.turn(kind, min(seconds, 0.5) if warm_up else seconds)
                for name, seat in seats.items()
                for kind in seat.kinds
            }
            if not warm_up:
                taken.append(turns)
                left = (rounds - number) * (time.monotonic() - start)
                print(f"round {number} of {rounds}; {left:.0f} s left", flush=True)
    return taken


# ---------------------------------------------------------------------- the ratios


def ratios(turns: dict[str, Turn], batch_size: int) -> dict[str, float]:
    """The ratios of one round."""
    native = turns["AtariVectorEnv"].env_steps_per_second
    result = {f"workers {of}": turns[f"workers {of}"].env_steps_per_second / native for of in ("8x1", "2x4")}
    for feed in ("fixed", "replay"):
        plain = turns[f"plain {feed}"].updates_per_second
        for precision in ("bf16", "fp32"):
            result[f"{precision}, {feed} batches"] = turns[f"{precision} {feed}"].updates_per_second / plain
    for num_workers, envs_per_worker in WHOLE:
        result |= over_limits(f"whole {num_workers}x{envs_per_worker}", turns, batch_size)
    return result


def over_limits(name: str, turns: dict[str, Turn], batch_size: int) -> dict[str, float]:
    """Time of the loop over that of its envs alone, its learner alone, and the CPU time of both on all cores."""
    envs, updates, loop = turns[f"{name} envs"], turns[f"{name} learner"], turns[f"{name} loop"]
    due = CONFIG.learner.replay_ratio / batch_size
    step, step_cpu = envs.wall / envs.env_steps, envs.cpu / envs.env_steps
    update, update_cpu = due * updates.wall / updates.updates, due * updates.cpu / updates.updates
    limits = {"envs": step, "learner": update, "cores": (step_cpu + update_cpu) / cores()}
    taken = loop.wall / loop.env_steps
    of_each = {f"{name} / {limit}": taken / seconds for limit, seconds in limits.items()}
    return of_each | {f"{name} / the largest": taken / max(limits.values())}


BOUNDS: dict[str, tuple[float | None, float | None]] = {
    "workers 8x1": (0.85, None),
    "workers 2x4": (0.85, None),
    "bf16, fixed batches": (2.0, None),
    "fp32, fixed batches": (1.3, None),
    "whole {}x{} / the largest".format(*WHOLE[0]): (None, 1.1),
}
"""Lower and upper bound of a ratio, where it has one."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ratios", description="speed ratios and their bounds")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="length of a turn")
    parser.add_argument("--torch-threads", type=int, default=cores())
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args(argv)
    if min(arguments.rounds, arguments.torch_threads, arguments.batch_size) < 1 or not 0 < arguments.seconds <= 3600:
        print(
            "error: --rounds, --torch-threads, --batch-size must be at least 1, --seconds in (0, 3600]", file=sys.stderr
        )
        return BAD_INPUT
    taken = play(arguments.rounds, arguments.seconds, arguments.torch_threads, arguments.batch_size)
    of_rounds = [ratios(turns, arguments.batch_size) for turns in taken]
    medians = {name: statistics.median(of_round[name] for of_round in of_rounds) for name in of_rounds[0]}
    report = {
        "system": describe_system(),
        "torch_threads": arguments.torch_threads,
        "batch_size": arguments.batch_size,
        "seconds": arguments.seconds,
        "ratios": {
            name: {
                "median": median,
                "at_least": BOUNDS.get(name, (None, None))[0],
                "at_most": BOUNDS.get(name, (None, None))[1],
                "holds": holds(name, median),
                "rounds": [of_round[name] for of_round in of_rounds],
            }
            for name, median in medians.items()
        },
        "rates": rates(taken),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    return 0 if all(holds(name, median) for name, median in medians.items()) else 1


def holds(name: str, median: float) -> bool:
    """Whether the ratio meets its bound; True if it has none."""
    least, most = BOUNDS.get(name, (None, None))
    return (least is None or median >= least) and (most is None or median <= most)


def rates(taken: Sequence[dict[str, Turn]]) -> dict[str, dict[str, float]]:
    """Median rates of each `contestant kind` over the rounds."""
    from atari_dqn.diagnostics.measure import Rates

    result = {}
    for name in taken[0]:
        of = Rates.of([turns[name] for turns in taken])
        result[name] = {key: value for key, value in vars(of).items() if key != "turns" and value}
    return result


def show(report: dict[str, Any]) -> None:
    """Print the report as two tables."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(box=box.SIMPLE_HEAD, title=f"{report['system']['processor']}, {report['system']['cores']} cores")
    for name in ("", "env steps/s", "updates/s", "cores busy", "taken by others"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for name, rate in report["rates"].items():
        cells = (f"{rate[key]:,.0f}" if key in rate else "–" for key in ("env_steps_per_second", "updates_per_second"))
        table.add_row(name, *cells, f"{rate['cores_busy']:.2f}", f"{rate.get('cores_taken', 0):.2f}")
    console.print(table)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("ratio", "median", "least", "most", "bound", "holds"):
        table.add_column(name, justify="left" if name == "ratio" else "right", no_wrap=True)
    for name, ratio in report["ratios"].items():
        bound = f"≥ {ratio['at_least']}" if ratio["at_least"] else f"≤ {ratio['at_most']}" if ratio["at_most"] else ""
        spread = (min(ratio["rounds"]), max(ratio["rounds"]))
        verdict = ("yes" if ratio["holds"] else "NO") if bound else ""
        table.add_row(name, f"{ratio['median']:.2f}", *(f"{end:.2f}" for end in spread), bound, verdict)
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
