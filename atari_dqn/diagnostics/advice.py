"""Settings that suit a machine, from what it has and from a few seconds of measurement.

The measurements are those of `atari_dqn.bench`, on Breakout, in one turn of half a second each.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable

import numpy as np

from atari_dqn.cli.format import duration
from atari_dqn.config.derived import derive
from atari_dqn.config.schema import TrainConfig
from atari_dqn.training.multi_seed import RUN_BYTES

GAME = "breakout"
FRAME_BYTES, STACK = 84 * 84, 4
TURN_SECONDS = 0.5
MOST_WORKERS = {"cpu": 8, "cuda": 32}
"""Largest number of workers; on a CPU the learner takes most of the time, and its threads need the cores."""
ENVS_CPU, ENVS_PER_WORKER_GPU = 8, 8
"""Least number of envs on a CPU; envs of each worker beside a GPU, as in experiments/breakout_fast.py."""
LARGEST_CAPACITY, SMALLEST_CAPACITY = 2**20, 2**13
LARGEST_BATCH = 512
BUSY_CORES = 0.2
"""CPU use of other programs, in cores, from which it is mentioned."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a machine has, and how fast it is."""

    device: str
    """Device type of the learner: cpu or cuda."""
    cores: int
    """Number of CPU cores this process may use."""
    memory: int
    """Free memory of the device that will hold the replay, in bytes."""
    steps_per_core: float = 0.0
    """Env steps per CPU second of the workers."""
    updates: float = 0.0
    """Updates per second in batches of 32, with idle envs."""
    loop: float = 0.0
    """Env steps per second of the loop with the default batch size and replay ratio."""
    taken: float = 0.0
    """CPU use of other programs meanwhile, in cores."""


@dataclasses.dataclass(frozen=True)
class Advice:
    """One flag of the suggested command."""

    name: str
    value: int
    reason: str


def envs_for(machine: Machine) -> list[Advice]:
    """Number of workers and of envs per worker; everything else is measured with these."""
    most = MOST_WORKERS[machine.device]
    workers = min(machine.cores, most)
    if machine.device == "cuda":
        per_worker = ENVS_PER_WORKER_GPU
        reason = f"one forward pass on the GPU serves all {workers * per_worker} envs"
    else:
        per_worker = max(1, -(-ENVS_CPU // workers))
        reason = f"{workers * per_worker} envs: one forward pass serves all of them"
    return [
        Advice("num_workers", workers, f"one for each of {machine.cores} cores, at most {most}"),
        Advice("envs_per_worker", per_worker, reason),
    ]


def capacity_for(machine: Machine) -> Advice:
    """The largest power of two, up to a million, that leaves half of the free memory to others."""
    capacity = LARGEST_CAPACITY
    room = machine.memory / 2 - (RUN_BYTES if machine.device == "cpu" else 0)
    while capacity > SMALLEST_CAPACITY and replay_bytes(capacity) > room:
        capacity //= 2
    most = ", the million of Mnih et al. 2015" if capacity == LARGEST_CAPACITY else ""
    reason = f"{replay_bytes(capacity) / 1e9:.1f} of {machine.memory / 1e9:.1f} GB free{most}"
    return Advice("replay_capacity", capacity, reason)


def batch_for(machine: Machine) -> list[Advice]:
    """Batch size, and the target update interval where the batch is not the default.

    On a CPU an update takes as much longer as its batch is larger: the default. On a GPU it hardly takes longer: the
    smallest batch whose updates keep up with the emulators. The target network is then copied after as many env steps
    as by default.
    """
    default = TrainConfig().learner
    batch = default.batch_size
    if machine.device == "cpu":
        reason = f"{_keep_up(machine, batch)}; larger batches take as much longer"
        return [Advice("batch_size", batch, reason)]
    while batch < LARGEST_BATCH and _learned_from(machine, batch) < machine.steps_per_core * machine.cores:
        batch *= 2
    advice = [Advice("batch_size", batch, _keep_up(machine, batch))]
    if batch > default.batch_size:
        interval = default.target_update_interval * default.batch_size // batch
        advice.append(Advice("target_update_interval", interval, "updates, or as many env steps as by default"))
    return advice


def expected_rate(machine: Machine, batch_size: int) -> float:
    """Env steps per second: measured for the default batch size, else the limit set by emulators and updates."""
    if batch_size == TrainConfig().learner.batch_size:
        return machine.loop
    return min(machine.steps_per_core * machine.cores, _learned_from(machine, batch_size))


def suggestion(machine: Machine) -> list[str]:
    """Lines of text: the suggested flags with their reasons, the expected speed, and last the command itself."""
    advice = [*envs_for(machine), capacity_for(machine), *batch_for(machine)]
    rate = expected_rate(machine, next(each.value for each in advice if each.name == "batch_size"))
    measured = "measured" if rate == machine.loop else "at most"
    total = TrainConfig().run.total_env_steps
    lines = [
        f"an emulator makes {machine.steps_per_core:,.0f} env steps per second on one core; suggested:",
        *(f"  --{each.name.replace('_', '-'):<23}{each.value:<9}{each.reason}" for each in advice),
        f"  expected: {rate:,.0f} env steps/s ({measured}), {3600 * rate:,.0f} an hour;"
        f" a whole run of {total:,} takes {duration(total / rate)}",
    ]
    if machine.taken > BUSY_CORES:
        lines.append(
            f"  (other programs used {machine.taken:.1f} cores during the measurement; while they run,"
            f" --torch-threads {max(1, machine.cores - 1)} is faster)"
        )
    flags = [word for each in advice for word in (f"--{each.name.replace('_', '-')}", str(each.value))]
    return [*lines, "", shlex.join(["python", "-m", "atari_dqn.train", "--env-id", GAME, *flags])]


def measure_machine(tick: Callable[[], None]) -> Machine:
    """Measure workers, learner and loop of a short run on this machine; `tick` is called often."""
    import torch

    from atari_dqn.agent.device import resolve_device, set_up_torch
    from atari_dqn.diagnostics.measure import Bench
    from atari_dqn.envs.make import resolve_env_id, spec_of
    from atari_dqn.system.machine import available_memory, cgroup_cores, cores
    from atari_dqn.training.assembly import local_trainer

    device = resolve_device("auto")
    memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    allowed = int(max(1, min([cores(), *cgroup_cores()])))
    machine = Machine(device.type, allowed, memory)
    config = TrainConfig().replace(
        env_id=resolve_env_id(GAME),
        replay_capacity=SMALLEST_CAPACITY,
        learning_starts=600,
        torch_threads=allowed,
        **{each.name: each.value for each in envs_for(machine)},
    )
    set_up_torch(config)
    trainer = local_trainer(config, spec_of(config.env))
    bench = Bench(trainer, tick)
    try:
        bench.prepare()
        workers, learner, loop = (take(TURN_SECONDS) for take in (bench.workers_alone, bench.learner_alone, bench.loop))
    finally:
        trainer.close()
    return dataclasses.replace(
        machine,
        steps_per_core=workers.env_steps / workers.cpu,
        updates=learner.updates / learner.wall,
        loop=loop.env_steps / loop.wall,
        taken=float(np.median([turn.others / turn.wall for turn in (workers, learner, loop)])),
    )


def replay_bytes(capacity: int = TrainConfig().replay.replay_capacity) -> int:
    """Memory of a replay of Atari frames, in bytes."""
    return derive(TrainConfig().replace(replay_capacity=capacity), FRAME_BYTES, STACK).replay_bytes


def _learned_from(machine: Machine, batch_size: int) -> float:
    """Env steps per second for which the updates keep the default replay ratio."""
    return machine.updates * batch_size / TrainConfig().learner.replay_ratio


def _keep_up(machine: Machine, batch_size: int) -> str:
    return f"{machine.updates:,.0f} updates/s keep up with {_learned_from(machine, batch_size):,.0f} env steps/s"
