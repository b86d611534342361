"""One run over the nodes of a Ray cluster beside the same run on one machine: env steps/s, and the loop's time.

The nodes are network namespaces of this machine, behind lines with a delay. Trainers with workers here, on one node and
on several take short turns in rounds, at every delay; ratios are taken within a round. At the end one node is cut off
in the middle of a run. Needs Linux and root. All nodes share this machine's cores, so this measures what the
distribution costs, not what more machines bring.

    python -m benchmarks.cluster
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atari_dqn.config.schema import TrainConfig
from atari_dqn.system.machine import describe_system
from benchmarks.namespaces import Namespaces

if TYPE_CHECKING:
    from atari_dqn.diagnostics.measure import Bench, Turn
    from atari_dqn.distributed.cluster import Cluster, Node

RESULTS = Path(__file__).parent / "results" / "cluster.json"
WORKERS = 4
CONFIG = TrainConfig().replace(
    env_id="ALE/Breakout-v5", num_workers=WORKERS, replay_capacity=2**14, learning_starts=512, device="cpu"
)
CUT_DEADLINE = 10.0
"""`--worker-deadline` of the run that loses a node, in seconds"""
KINDS = ("workers_alone", "learner_alone", "loop")


def parts_on(cluster: Cluster, count: int) -> Any:
    """Makes the parts of a trainer whose workers are on `count` nodes of `cluster`."""
    from atari_dqn.distributed.assembly import cluster_parts
    from atari_dqn.distributed.cluster import Cluster

    class Few(Cluster):
        def __init__(self) -> None:
            vars(self).update(vars(cluster))

        def usable(self) -> dict[str, Node]:
            nodes = {id: node for id, node in super().usable().items() if node.cpus}
            return dict(sorted(nodes.items())[:count])

    return lambda config, spec: cluster_parts(Few(), config, spec)


def take(cluster: Cluster, nodes: Sequence[int], num_envs: int, set_delay: Any, options: Any) -> list[dict[str, Any]]:
    """Start a trainer here and one on each number of nodes, and take their turns. Returns a row for each turn."""
    from atari_dqn.agent.device import set_up_torch
    from atari_dqn.diagnostics.measure import Bench
    from atari_dqn.envs.make import spec_of
    from atari_dqn.training.assembly import local_parts
    from atari_dqn.training.trainer import Trainer

    config = CONFIG.replace(envs_per_worker=num_envs // WORKERS, torch_threads=options.torch_threads)
    set_up_torch(config)
    spec = spec_of(config.env)
    rows: list[dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        benches: dict[str, Bench] = {}
        places: dict[str, Any] = {"local": local_parts, **{f"{n} nodes": parts_on(cluster, n) for n in nodes}}
        for name, parts in places.items():
            trainer = Trainer(config, spec, parts(config, spec))
            stack.callback(trainer.close)
            benches[name] = Bench(trainer)
            benches[name].prepare()
        for number in range(options.rounds):
            begin = time.monotonic()
            for delay in options.delays:
                set_delay(delay / 1000)
                for name, bench in benches.items():
                    for kind in KINDS:
                        if name == "local" and delay != options.delays[0]:
                            continue  # no line lies between
                        turn: Turn = getattr(bench, kind)(options.seconds)
                        row = {"envs": num_envs, "round": number, "delay_ms": delay, "where": name, "kind": kind}
                        rows.append(row | vars(turn))
            set_delay(0.0)
            print(
                f"{num_envs} envs, round {number + 1} of {options.rounds}: {time.monotonic() - begin:.0f} s", flush=True
            )
    return rows


def cut_off(cluster: Cluster, spaces: Namespaces) -> dict[str, float]:
    """Cut the line of one node in the middle of a run over all. Returns the longest tick, in seconds."""
    from atari_dqn.envs.make import spec_of
    from atari_dqn.training.trainer import Trainer

    config = CONFIG.replace(envs_per_worker=2, worker_deadline=CUT_DEADLINE)
    spec = spec_of(config.env)
    longest = 0.0
    with contextlib.closing(Trainer(config, spec, parts_on(cluster, len(spaces.lines))(config, spec))) as trainer:
        trainer.start()
        for number in range(200):
            if number == 100:
                spaces.lines[0].delay.value = -1.0
            begin = time.monotonic()
            trainer.iterate()
            longest = max(longest, time.monotonic() - begin)
    return {"worker_deadline": CUT_DEADLINE, "longest_tick": longest}


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Medians over the rounds for each number of envs, delay and place."""
    due = CONFIG.learner.replay_ratio / CONFIG.learner.batch_size

    def seconds(row: dict[str, Any]) -> float:
        """Per env step; for updates, those that are due for one."""
        return float(due * row["wall"] / row["updates"] if row["kind"] == KINDS[1] else row["wall"] / row["env_steps"])

    of = {tuple(row[key] for key in ("envs", "round", "delay_ms", "where", "kind")): seconds(row) for row in rows}
    first = min(row["delay_ms"] for row in rows)
    found = []
    for envs, delay, where in dict.fromkeys((row["envs"], row["delay_ms"], row["where"]) for row in rows):
        rounds = sorted({row["round"] for row in rows if row["envs"] == envs})
        alone, update, loop = ([of[envs, number, delay, where, kind] for number in rounds] for kind in KINDS)
        local = [of[envs, number, first, "local", KINDS[2]] for number in rounds]
        found.append(
            {
                "envs": envs,
                "delay_ms": delay,
                "where": where,
                "env_steps_per_second_alone": statistics.median(1 / each for each in alone),
                "env_steps_per_second_in_the_loop": statistics.median(1 / each for each in loop),
                "loop_over_the_larger_part": statistics.median(
                    whole / max(both) for whole, *both in zip(loop, alone, update, strict=True)
                ),
                "loop_over_local": statistics.median(map(lambda one, other: one / other, loop, local)),
            }
        )
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description="one run over several nodes")
    parser.add_argument("--envs", type=int, nargs="+", default=[8, 16, 32, 64], help=f"multiples of {WORKERS}")
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--delays", type=float, nargs="+", default=[0, 1, 5, 20], help="round trips in ms")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn")
    parser.add_argument("--torch-threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    from atari_dqn.distributed.cluster import connected

    spaces = Namespaces(max(options.nodes))
    rows: list[dict[str, Any]] = []
    try:
        spaces.start_nodes(cpus=WORKERS * (len(options.nodes) + 1))
        with connected(spaces.address, CONFIG.env, print) as cluster:
            for num_envs in options.envs:
                rows += take(cluster, options.nodes, num_envs, spaces.set_delay, options)
            cut = cut_off(cluster, spaces)
    finally:
        spaces.close()
    medians = summary(rows)
    report = {
        "system": describe_system(),
        "seconds": options.seconds,
        "medians": medians,
        "cut_off": cut,
        "turns": rows,
    }
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    for row in medians:
        print(*(f"{value:.3g}" if isinstance(value, float) else value for value in row.values()), sep="\t")
    print(f"a node cut off: the longest tick took {cut['longest_tick']:.1f} s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
