"""Settings that suit a machine: what it has and what short measurements say flow in, a command line with the reason for
each of its flags flows out.

The measurements are the benchmark's, of Breakout, in turns of half a second; `python -m atari_dqn.bench` takes minutes
and says more.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable

import numpy as np

from atari_dqn.config.derived import derive
from atari_dqn.config.schema import TrainConfig
from atari_dqn.training.multi_seed import RUN_BYTES

GAME = "breakout"
FRAME_BYTES, STACK = 7_056, 4
TURN_SECONDS = 0.5
MOST_WORKERS = {"cpu": 8, "cuda": 32}
"""On a CPU the learner is what takes time, and its threads want the cores."""
ENVS, ENVS_PER_WORKER_GPU = 8, 8
"""Of a run on a CPU, at least; and of each worker beside a GPU, as in experiments/breakout_fast.py."""
LARGEST_CAPACITY, SMALLEST_CAPACITY = 2**20, 2**13
LARGEST_BATCH = 512


@dataclasses.dataclass(frozen=True)
class Machine:
    """What there is, and how fast it is."""

    device: str
    """cpu or cuda"""
    cores: int
    memory: int
    """bytes free where the replay will live"""
    steps_per_core: float = 0.0
    """env steps of a second of CPU time"""
    updates: float = 0.0
    """a second, of 32 transitions, envs idle"""
    loop: float = 0.0
    """env steps a second with the updates that are due, in batches of 32"""
    taken: float = 0.0
    """cores that other programs kept busy meanwhile"""


@dataclasses.dataclass(frozen=True)
class Advice:
    """One flag of the command line."""

    name: str
    value: int
    reason: str


def envs_for(machine: Machine) -> list[Advice]:
    """How many workers and envs; what is measured is measured with them."""
    workers = min(machine.cores, MOST_WORKERS[machine.device])
    if machine.device == "cuda":
        reason = f"one forward pass of the GPU serves all {workers * ENVS_PER_WORKER_GPU} envs"
        per_worker = ENVS_PER_WORKER_GPU
    else:
        per_worker = max(1, -(-ENVS // workers))
        reason = f"{workers * per_worker} envs: batches of as many games, and each pass serves all"
    return [
        Advice(
            "num_workers", workers, f"one for each of {machine.cores} cores, {MOST_WORKERS[machine.device]} at most"
        ),
        Advice("envs_per_worker", per_worker, reason),
    ]


def capacity_for(machine: Machine) -> Advice:
    """The largest power of two up to a million whose replay, with the run around it, leaves half of the memory free."""
    capacity = LARGEST_CAPACITY
    room = machine.memory / 2 - (RUN_BYTES if machine.device == "cpu" else 0)
    while capacity > SMALLEST_CAPACITY and _replay_bytes(capacity) > room:
        capacity //= 2
    most = ", the million of Mnih et al. 2015" if capacity == LARGEST_CAPACITY else ""
    reason = f"{_replay_bytes(capacity) / 1e9:.1f} of {machine.memory / 1e9:.1f} GB free{most}"
    return Advice("replay_capacity", capacity, reason)


def batch_for(machine: Machine) -> list[Advice]:
    """The usual 32 on a CPU, where a larger batch takes as much longer. On a GPU it takes hardly longer, so: the least
    whose updates keep up with the emulators; the target then follows after as many env steps as by default."""
    default = TrainConfig().learner
    steps = machine.steps_per_core * machine.cores
    batch = default.batch_size
    if machine.device == "cpu":
        rate = machine.updates * batch / default.replay_ratio
        reason = f"{machine.updates:,.0f} updates/s learn from {rate:,.0f} env steps/s; larger ones take as much longer"
        return [Advice("batch_size", batch, reason)]
    while batch < LARGEST_BATCH and machine.updates * batch / default.replay_ratio < steps:
        batch *= 2
    rate = machine.updates * batch / default.replay_ratio
    advice = [Advice("batch_size", batch, f"{machine.updates:,.0f} updates/s then learn from {rate:,.0f} env steps/s")]
    if batch > default.batch_size:
        interval = default.target_update_interval * default.batch_size // batch
        advice.append(Advice("target_update_interval", interval, "updates, which are as many env steps as by default"))
    return advice


def expected_rate(machine: Machine, batch_size: int) -> float:
    """Env steps a second: as measured; with larger batches, what emulators and updates allow at most."""
    default = TrainConfig().learner
    if batch_size == default.batch_size:
        return machine.loop
    return min(machine.steps_per_core * machine.cores, machine.updates * batch_size / default.replay_ratio)


def advise() -> None:
    """Measure, and print the command with its reasons."""
    from atari_dqn.cli.format import duration
    from atari_dqn.cli.output import StatusLine, open_console

    console = open_console()
    with StatusLine(console, f"measuring on {GAME}, some seconds") as status:
        machine = _measured(lambda: status.update(f"measuring on {GAME}, some seconds"))
    advice = [*envs_for(machine), capacity_for(machine), *batch_for(machine)]
    values = {each.name: each.value for each in advice}
    rate = expected_rate(machine, values["batch_size"])
    measured = "measured" if rate == machine.loop else "at most"
    total = TrainConfig().run.total_env_steps
    lines = [
        "",
        f"an emulator makes {machine.steps_per_core:,.0f} env steps a second on one core; suggested:",
        *(f"  --{each.name.replace('_', '-'):<23}{each.value:<9}{each.reason}" for each in advice),
        f"  expected: {rate:,.0f} env steps/s ({measured}), {3600 * rate:,.0f} an hour;"
        f" the {total:,} of a whole run take {duration(total / rate)}",
    ]
    if machine.taken > 0.2:
        lines.append(
            f"  (other programs kept {machine.taken:.1f} cores busy: without them it is faster, and beside them"
            f" --torch-threads {max(1, machine.cores - 1)} is)"
        )
    flags = [word for each in advice for word in (f"--{each.name.replace('_', '-')}", str(each.value))]
    lines += ["", shlex.join(["python", "-m", "atari_dqn.train", "--env-id", GAME, *flags])]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _measured(tick: Callable[[], None]) -> Machine:
    """This machine, with the figures of one turn each of workers, learner and loop."""
    import torch

    from atari_dqn.agent.device import resolve_device, set_up_torch
    from atari_dqn.diagnostics.measure import Bench
    from atari_dqn.envs.make import env_spec, resolve_env_id
    from atari_dqn.envs.protocol import PROTOCOLS
    from atari_dqn.system.machine import available_memory, cgroup_cores, cores
    from atari_dqn.training.trainer import Trainer

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
    trainer = Trainer(config, env_spec(config.env.env_id, PROTOCOLS[config.env.protocol], config.env.frame_stack))
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


def _replay_bytes(capacity: int) -> int:
    return derive(TrainConfig().replace(replay_capacity=capacity), FRAME_BYTES, STACK).replay_bytes
