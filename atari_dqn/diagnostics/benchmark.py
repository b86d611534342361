"""The benchmark of a training's settings on this machine: every measurement, in rounds, and its report."""

import dataclasses
import statistics
from collections.abc import Callable
from typing import Any

from atari_dqn.agent.device import check_memory, set_up_torch
from atari_dqn.config.derived import derive
from atari_dqn.config.schema import TrainConfig
from atari_dqn.diagnostics.measure import Bench, Rates, Turn, family_memory
from atari_dqn.diagnostics.profiler import LOOP_PARTS
from atari_dqn.diagnostics.report import diagnose
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.system.machine import describe_system
from atari_dqn.training.assembly import local_trainer


def benchmark(
    config: TrainConfig, spec: EnvSpec, seconds: float, rounds: int, show: Callable[[str], object]
) -> dict[str, Any]:
    """Measure workers, learner and loop of a training, `rounds` times in alternation.

    Args:
        config: Settings of the training; checked.
        spec: Its environment.
        seconds: Length of each measurement.
        rounds: Number of measurements of each kind; medians are reported.
        show: Called often with one line of progress.

    Returns:
        Every figure, JSON-ready, with the bottleneck and the setting to change (see `report.diagnose`).
    """
    threads = set_up_torch(config, spec.kind)
    check_memory(config, derive(config, spec.frame_bytes).replay_bytes)
    trainer = local_trainer(config, spec)
    doing = f"random play until env step {config.learner.learning_starts:,}"
    bench = Bench(trainer, lambda: show(doing))
    kinds: dict[str, Callable[[float], Turn]] = {
        "workers alone": bench.workers_alone,
        "learner alone": bench.learner_alone,
        "the loop": bench.loop,
    }
    turns: dict[str, list[Turn]] = {kind: [] for kind in kinds}
    accounts: list[dict[str, float]] = []
    try:
        bench.prepare()
        for number in range(rounds):
            for kind, take in kinds.items():
                doing = f"round {number + 1} of {rounds}: {kind}"
                turns[kind].append(take(seconds))
            doing = f"round {number + 1} of {rounds}: where the time goes"
            accounts.append(bench.account(seconds))
        memory = family_memory()
        # On a CPU a page of the replay is allocated when it is first written to; on a GPU all are from the start.
        replay = trainer.replay
        unwritten = max(0.0, 1 - (replay.newest + 1) / replay.num_rows)
        frames_to_come = int(unwritten * replay.frames.nbytes) if trainer.device.type == "cpu" else 0
    finally:
        trainer.close()
    report = {
        "config": config.to_dict(),
        "system": describe_system(),
        "device": str(trainer.device),
        "precision": trainer.learner.precision,
        "torch_threads": threads,
        "seconds": seconds,
        "rounds": rounds,
        "rates": {kind: dataclasses.asdict(Rates.of(taken)) for kind, taken in turns.items()},
        "account": {part: statistics.median(account[part] for account in accounts) for part in LOOP_PARTS},
        "memory_bytes": memory,
        "memory_bytes_full": memory + frames_to_come,
    }
    return report | diagnose(report)
