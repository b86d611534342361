"""Settings that suit a machine, from what it has and from a few seconds of measurement on Breakout."""

import dataclasses
import os
import shlex
import statistics
from collections.abc import Callable

from atari_dqn.cli.command import typed
from atari_dqn.cli.format import duration, plural
from atari_dqn.config.derived import RUN_BYTES, derive
from atari_dqn.config.presets import ABOUT, ABOVE_RANDOM, PRESETS
from atari_dqn.config.schema import TrainConfig

GAME = "breakout"
FRAME_BYTES = 84 * 84
ROUNDS, TURN_SECONDS = 2, 0.5
SMALLEST_CAPACITY = 2**13
PRESET = {"cpu": "cpu", "cuda": "gpu"}
"""Preset that suits a device"""


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
    """Env steps per second of the loop with the preset, by number of torch threads"""
    load: float = 0.0
    """Processes that wanted a core in the last minute before the measurement, on average"""

    @property
    def loop(self) -> float:
        return max(self.loops.values(), default=0.0)

    @property
    def threads(self) -> int:
        """The number of torch threads with the faster loop."""
        return max(self.loops, key=lambda threads: self.loops[threads])


def settings_for(machine: Machine) -> TrainConfig:
    """The preset's settings, with a replay that leaves half of the memory to others."""
    preset = PRESETS[PRESET[machine.device]](machine.cores, TrainConfig().run.total_env_steps)
    capacity = preset.replay.replay_capacity
    room = machine.memory / 2 - (RUN_BYTES if machine.device == "cpu" else 0)
    while capacity > SMALLEST_CAPACITY and replay_bytes(capacity) > room:
        capacity //= 2
    return preset.replace(replay_capacity=capacity)


def suggestion(machine: Machine) -> list[str]:
    """Lines of text: the suggested flags with their reasons, the expected speed, and last the command itself."""
    name, config, rate = PRESET[machine.device], settings_for(machine), machine.loop
    capacity = config.replay.replay_capacity
    full = f"{replay_bytes(capacity) / 1e9:.1f} of {machine.memory / 1e9:.1f} GB free, full after"
    advice = {
        "--preset": (name, ABOUT[name]),
        "--replay-capacity": (capacity, f"{full} {duration(capacity / rate)}"),
    }
    others = [f"{loop:,.0f} with {threads}" for threads, loop in machine.loops.items() if threads != machine.threads]
    if others:
        reason = f"the loop makes {rate:,.0f} env steps/s with it, {', '.join(others)}"
        advice["--torch-threads"] = (machine.threads, reason)
    above = []
    if machine.device == "cpu":
        seconds = ABOVE_RANDOM["ALE/Breakout-v5"] / rate
        above = [f"  its score rises above that of random play after about {duration(seconds)} at this speed"]
    total = config.run.total_env_steps
    words = [word for flag, (value, _) in advice.items() for word in (flag, str(value))]
    return [
        f"load: {machine.load:.1f} on {plural(machine.cores, 'core')} before the measurement"
        + ("; other programs make all of this slower" if machine.load > machine.cores / 2 else ""),
        f"an emulator makes {machine.steps_per_core:,.0f} env steps per second on one core; suggested:",
        *(f"  {flag:<25}{value:<9}{reason}" for flag, (value, reason) in advice.items()),
        f"  measured: {rate:,.0f} env steps/s, {3600 * rate:,.0f} an hour; a whole run of {total:,} takes"
        f" {duration(total / rate)}",
        *above,
        "",
        f"{typed()} -m atari_dqn.train --env-id {GAME} {shlex.join(words)}",
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
    config = settings_for(machine).replace(
        env_id=resolve_env_id(GAME), replay_capacity=SMALLEST_CAPACITY, learning_starts=600, torch_threads=1
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


def replay_bytes(capacity: int) -> int:
    """Memory of a replay of Atari frames, in bytes."""
    return derive(TrainConfig().replace(replay_capacity=capacity), FRAME_BYTES).replay_bytes
