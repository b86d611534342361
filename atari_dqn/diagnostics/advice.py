"""Settings that suit a machine, from what it has and from a few seconds of measurement on Breakout."""

import dataclasses
import os
import shlex
import statistics
from collections.abc import Callable

from atari_dqn.cli.format import duration
from atari_dqn.config.derived import RUN_BYTES, derive
from atari_dqn.config.schema import TrainConfig

GAME = "breakout"
FRAME_BYTES = 84 * 84
ROUNDS, TURN_SECONDS = 2, 0.5
MOST_WORKERS = {"cpu": 8, "cuda": 32}
"""Largest number of workers; on a CPU the learner takes most of the time, and its threads need the cores"""
ENVS_CPU, ENVS_PER_WORKER_GPU = 8, 8
"""Least number of envs on a CPU; envs of each worker beside a GPU, as in experiments/breakout_fast.py"""
LARGEST_CAPACITY, SMALLEST_CAPACITY = 2**20, 2**13
FILL_SECONDS = 7_200
"""Time within which a replay larger than the default must be full"""
PRESETS = {"cpu": "breakout_cpu", "cuda": "breakout_fast"}
"""Experiment that suits a device"""
FIRST_IMPROVEMENT = 3.0
"""Core-minutes to a training score of 5.9, at 152,029 env steps, in the race behind experiments.breakout_cpu"""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a machine has, and how fast it is."""

    device: str
    """Device type of the learner: cpu or cuda"""
    cores: int
    """Number of CPU cores this process may use"""
    memory: int
    """Free memory of the device that will hold the replay, in bytes"""
    steps_per_core: float = 0.0
    """Env steps per CPU second of the workers"""
    loops: dict[int, float] = dataclasses.field(default_factory=dict)
    """Env steps per second of the loop with the default batch size and replay ratio, by number of torch threads"""
    load: float = 0.0
    """Processes that wanted a core in the last minute before the measurement, on average"""

    @property
    def loop(self) -> float:
        return max(self.loops.values(), default=0.0)

    @property
    def threads(self) -> int:
        """The number of torch threads with the faster loop."""
        return max(self.loops, key=lambda threads: self.loops[threads])


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
    per_worker = ENVS_PER_WORKER_GPU if machine.device == "cuda" else max(1, -(-ENVS_CPU // workers))
    return [
        Advice("num_workers", workers, f"one for each of {machine.cores} cores, at most {most}"),
        Advice("envs_per_worker", per_worker, f"one forward pass serves all {workers * per_worker} envs"),
    ]


def capacity_for(machine: Machine, rate: float) -> Advice:
    """The largest power of two, up to a million, that leaves half of the memory to others and is soon full.

    `rate` is in env steps per second.
    """
    capacity = LARGEST_CAPACITY
    room = machine.memory / 2 - (RUN_BYTES if machine.device == "cpu" else 0)
    soon = max(TrainConfig().replay.replay_capacity, rate * FILL_SECONDS)
    while capacity > SMALLEST_CAPACITY and (replay_bytes(capacity) > room or capacity > soon):
        capacity //= 2
    reason = f"{replay_bytes(capacity) / 1e9:.1f} of {machine.memory / 1e9:.1f} GB free"
    return Advice("replay_capacity", capacity, f"{reason}, full after {duration(capacity / rate)}")


def threads_for(machine: Machine) -> list[Advice]:
    """The better number of torch threads, if several were measured."""
    others = [f"{loop:,.0f} with {threads}" for threads, loop in machine.loops.items() if threads != machine.threads]
    reason = f"the loop makes {machine.loop:,.0f} env steps/s with it, {', '.join(others)}"
    return [Advice("torch_threads", machine.threads, reason)] if others else []


def suggestion(machine: Machine) -> list[str]:
    """Lines of text: the suggested flags with their reasons, the expected speed, and last the command itself."""
    rate = machine.loop
    advice = [*envs_for(machine), capacity_for(machine, rate), *threads_for(machine)]
    total = TrainConfig().run.total_env_steps
    flags = {f"--{each.name.replace('_', '-')}": each for each in advice}
    threads = f" --torch-threads {machine.threads}" if threads_for(machine) else ""
    preset = f"the preset for such a machine: python -m experiments.{PRESETS[machine.device]}{threads}"
    if machine.device == "cpu":
        minutes = FIRST_IMPROVEMENT * max(1.0, (machine.load + 1) / machine.cores)
        preset += f"; its score rises above that of random play after about {minutes:.0f} minutes at this load"
    return [
        f"load: {machine.load:.1f} on {machine.cores} cores before the measurement"
        + ("; other programs make all of this slower" if machine.load > machine.cores / 2 else ""),
        f"an emulator makes {machine.steps_per_core:,.0f} env steps per second on one core; suggested:",
        *(f"  {flag:<25}{each.value:<9}{each.reason}" for flag, each in flags.items()),
        f"  measured: {rate:,.0f} env steps/s, {3600 * rate:,.0f} an hour; a whole run of {total:,} takes"
        f" {duration(total / rate)}",
        preset,
        "",
        shlex.join(
            ["python", "-m", "atari_dqn.train", "--env-id", GAME]
            + [word for flag, each in flags.items() for word in (flag, str(each.value))]
        ),
    ]


def measure_machine(tick: Callable[[], None]) -> Machine:
    """Measure workers and loop of a short run on this machine; `tick` is called often."""
    import torch

    from atari_dqn.agent.device import resolve_device, set_up_torch
    from atari_dqn.diagnostics.measure import Bench
    from atari_dqn.envs.make import resolve_env_id, spec_of
    from atari_dqn.system.machine import available_memory, usable_cores
    from atari_dqn.training.assembly import local_trainer

    load = os.getloadavg()[0]
    device = resolve_device("auto")
    memory = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_memory()
    allowed = usable_cores()
    machine = Machine(device.type, allowed, memory, load=load)
    config = TrainConfig().replace(
        env_id=resolve_env_id(GAME),
        replay_capacity=SMALLEST_CAPACITY,
        learning_starts=600,
        torch_threads=1,
        **{each.name: each.value for each in envs_for(machine)},
    )
    set_up_torch(config)
    counts = sorted({1, allowed}) if device.type == "cpu" else [allowed]
    loops: dict[int, list[float]] = {threads: [] for threads in counts}
    trainer = local_trainer(config, spec_of(config.env))
    bench = Bench(trainer, tick)
    try:
        bench.prepare()
        workers = bench.workers_alone(TURN_SECONDS)
        for threads in ROUNDS * counts:
            torch.set_num_threads(threads)
            loops[threads].append(bench.loop(TURN_SECONDS).env_steps_per_second)
    finally:
        trainer.close()
    return dataclasses.replace(
        machine,
        steps_per_core=workers.env_steps / workers.cpu,
        loops={threads: statistics.mean(rates) for threads, rates in loops.items()},
    )


def replay_bytes(capacity: int = TrainConfig().replay.replay_capacity) -> int:
    """Memory of a replay of Atari frames, in bytes."""
    return derive(TrainConfig().replace(replay_capacity=capacity), FRAME_BYTES).replay_bytes
