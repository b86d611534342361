"""The contestants of `benchmarks.scale`: a trainer at one point of a sweep, or a replay of tiny frames.

Every replay is full of noise, because unwritten pages would take no memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch

from atari_dqn.agent.device import set_up_torch
from atari_dqn.config.schema import TrainConfig
from atari_dqn.diagnostics.measure import Bench, Turn, family_memory, measure
from atari_dqn.envs.make import spec_of
from atari_dqn.replay.base import Replay
from atari_dqn.replay.prioritized import PrioritizedReplay
from atari_dqn.training.assembly import local_trainer
from benchmarks.seats import Kinds

TINY, TINY_ENVS, STACK = (8, 8), 256, 4
"""Frame shape, number of envs and stack of a replay in which gathering frames costs almost nothing."""


@contextlib.contextmanager
def family(config: TrainConfig, threads: int, kinds: Sequence[str]) -> Iterator[Kinds]:
    """A trainer and its workers, with a full replay, and the named kinds of its turns."""
    set_up_torch(config.replace(torch_threads=threads))
    trainer = local_trainer(config, spec_of(config.env))
    fill(trainer.replay)
    bench = Bench(trainer)

    def until_the_next_update() -> None:
        # Whole periods: an update of 1,024 comes once in many iterations and takes longer than all of them.
        before = trainer.learner.updates
        while trainer.learner.updates == before:
            trainer.iterate()

    def loop(seconds: float) -> Turn:
        return measure(
            until_the_next_update,
            seconds,
            env_steps=lambda: trainer.env_steps,
            updates=lambda: trainer.learner.updates,
        )

    try:
        bench.prepare()
        until_the_next_update()
        every: Kinds = {
            "loop": loop,
            "envs": bench.workers_alone,
            "learner": bench.learner_alone,
            "draw": lambda seconds: drawing(trainer.replay, config.learner.batch_size, seconds),
            "memory": lambda _: {"shared_out": family_memory(), "peak": family_peak()},
        }
        yield {kind: every[kind] for kind in (*kinds, "memory")}
    finally:
        trainer.close()


@contextlib.contextmanager
def tiny(capacity: int, threads: int, batch_size: int) -> Iterator[Kinds]:
    """A full replay of `TINY` frames."""
    torch.set_num_threads(threads)
    replay = PrioritizedReplay(
        capacity, TINY_ENVS, TINY, "uint8", STACK, n_step=1, gamma=0.99, clip_rewards=True, alpha=0.6, seed=1
    )
    fill(replay)
    yield {"tree": lambda seconds: drawing(replay, batch_size, seconds)}


def fill(replay: Replay) -> None:
    """Append noise until the ring is full, give every transition a random priority, and cut all episodes."""
    generator = torch.Generator().manual_seed(1)
    num_envs = replay.ring.num_envs
    noise = torch.randint(256, (64, *replay.frames.shape[1:]), generator=generator, dtype=torch.uint8)
    nothing = torch.zeros(num_envs, dtype=torch.bool)
    replay.append(noise[0], nothing)
    for row in range(1, replay.num_rows + 2):
        replay.append(noise[row % 64], nothing, nothing.long(), nothing.float(), nothing)
    following = (replay.newest + 1) * num_envs
    for ids in torch.arange(following - replay.num_rows * num_envs, following).split(2**14):
        replay.update_priorities(ids, torch.rand(len(ids), generator=generator))
    replay.cut()


def drawing(replay: Replay, batch_size: int, seconds: float) -> Turn:
    """Draw batches and update their priorities; each counts as an update."""
    errors, done = torch.rand(batch_size), 0

    def work() -> None:
        nonlocal done
        replay.update_priorities(replay.sample(batch_size).ids, errors)
        done += 1

    return measure(work, seconds, updates=lambda: done)


def family_peak() -> int:
    """Sum of the largest resident sets of this process and its living descendants, in bytes, shared pages included."""
    me = psutil.Process()
    return sum(resident_peak(process.pid) for process in (me, *me.children(recursive=True)))


def resident_peak(pid: int) -> int:
    """Largest resident set of a process so far, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
