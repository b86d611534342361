"""The benchmark of a training's settings on this machine: every measurement, in rounds, and its report."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from atari_dqn.agent.device import check_memory, set_up_torch
from atari_dqn.agent.weights import Precision
from atari_dqn.cli.format import duration
from atari_dqn.config.derived import derive
from atari_dqn.config.schema import TrainConfig
from atari_dqn.diagnostics.flops import matmul_peaks, update_flops
from atari_dqn.diagnostics.measure import Bench, Rates, Turn, family_memory
from atari_dqn.diagnostics.profiler import Account
from atari_dqn.diagnostics.report import diagnose
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.system.machine import describe_system
from atari_dqn.training.assembly import local_trainer
from atari_dqn.training.trainer import Trainer

KINDS = 6
"""Measurements of a round."""
START_SECONDS, RANDOM_STEPS_PER_SECOND = 5, 3000
"""Guesses for the first estimate of how long it will take."""


def expected_seconds(config: TrainConfig, seconds: float, rounds: int) -> float:
    """How long `benchmark` is expected to take."""
    return KINDS * rounds * seconds + START_SECONDS + config.learner.learning_starts / RANDOM_STEPS_PER_SECOND


def benchmark(
    config: TrainConfig, spec: EnvSpec, seconds: float, rounds: int, show: Callable[[str], object]
) -> dict[str, Any]:
    """Measure workers, learner, loop and arithmetic of a training.

    Args:
        config: Settings of the training; checked.
        spec: Its environment.
        seconds: Length of each measurement.
        rounds: Number of measurements of each kind, in alternation; medians are reported.
        show: Called often with one line of progress.

    Returns:
        Every figure, JSON-ready, with the bottleneck and the setting to change (see `report.diagnose`).
    """
    threads = set_up_torch(config)
    check_memory(config, derive(config, spec.frame_bytes, spec.stack).replay_bytes)
    trainer = local_trainer(config, spec)
    progress = _Progress(trainer, KINDS * rounds, seconds)
    bench = Bench(trainer, lambda: show(progress.line()))
    kinds: dict[str, Callable[[float], Turn]] = {
        "workers alone": bench.workers_alone,
        "learner alone": bench.learner_alone,
        "the loop": bench.loop,
    }
    turns: dict[str, list[Turn]] = {kind: [] for kind in kinds}
    accounts: list[Account] = []
    updates: list[dict[str, float]] = []
    peaks: list[dict[Precision, float]] = []
    memory = 0
    try:
        bench.prepare()
        for _ in range(rounds):
            for kind, take in kinds.items():
                progress.next(kind)
                turns[kind].append(take(seconds))
            progress.next("where the time goes")
            accounts.append(bench.account(seconds))
            progress.next("where an update's time goes")
            updates.append(bench.update_account(seconds))
            progress.next("the machine's peak")
            peaks.append(matmul_peaks(trainer.device, seconds))
            memory = max(memory, family_memory())
        # On a CPU a page of the replay is allocated when it is first written to; on a GPU all are from the start.
        replay = trainer.replay
        unwritten = max(0.0, 1 - (replay.newest + 1) / replay.num_rows)
        frames_to_come = int(unwritten * replay.frames.nbytes) if trainer.device.type == "cpu" else 0
    finally:
        trainer.close()
    learner = config.learner
    report = {
        "config": config.to_dict(),
        "system": describe_system(),
        "device": str(trainer.device),
        "precision": trainer.learner.precision,
        "torch_threads": threads,
        "seconds": seconds,
        "rounds": rounds,
        "rates": {kind: dataclasses.asdict(Rates.of(taken)) for kind, taken in turns.items()},
        "account": _medians([account.shares for account in accounts]),
        "cores": _medians([account.cores for account in accounts]),
        "update": _medians(updates),
        "flops": update_flops(trainer.learner.online, learner.batch_size, double_q=learner.double_q),
        "peaks": {precision: max(peak[precision] for peak in peaks) for precision in peaks[0]},
        "memory_bytes": memory,
        "memory_bytes_full": memory + frames_to_come,
    }
    return report | diagnose(report)


def _medians(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.median(figure[name] for figure in figures) for name in figures[0]}


class _Progress:
    """What is being measured, and the time left."""

    def __init__(self, trainer: Trainer, turns: int, seconds: float) -> None:
        self._trainer, self._left, self._seconds = trainer, turns, seconds
        self._kind = ""
        self._started = time.monotonic()

    def next(self, kind: str) -> None:
        self._kind = kind
        self._left -= 1
        self._started = time.monotonic()

    def line(self) -> str:
        passed = time.monotonic() - self._started
        if self._kind:
            left = self._left * self._seconds + max(0.0, self._seconds - passed)
            return f"measuring {self._kind}; {duration(left)} left"
        done, total = self._trainer.env_steps, max(1, self._trainer.config.learner.learning_starts)
        left = max(0, total - done) * passed / max(1, done) + self._left * self._seconds
        return f"random play: {done:,} of {total:,} env steps; {duration(left)} left"
