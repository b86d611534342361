"""Exact counts that do not depend on the speed of the machine: calls of torch, bytes that it allocates, bytes of a
transition, bytes that cross a pipe.

They are counted in the training loop on Breakout, in both precisions.
"""

from __future__ import annotations

import math
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from atari_dqn.agent.schedules import Piecewise
from atari_dqn.agent.weights import Precision
from atari_dqn.config.schema import TrainConfig
from atari_dqn.diagnostics.profiler import UPDATE_PARTS, account_of
from atari_dqn.envs.make import spec_of
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.training.assembly import local_parts, local_trainer
from atari_dqn.training.trainer import Trainer
from atari_dqn.workers.shared_memory import block_bytes

GAME, WORKERS, ENVS_PER_WORKER, TICKS = "ALE/Breakout-v5", 2, 4, 5


class Counter(TorchDispatchMode):
    """Counts the calls of torch and the bytes it allocates while it is entered.

    `calls` is the number of operators, forward and backward, views included. `allocated` is the size of the tensors
    they return outside the memory of their arguments; memory that a kernel uses internally is not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.allocated = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "profiler":  # begin or end of a named phase
            return result
        self.calls += 1
        known = {_memory(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and _memory(tensor) not in known:
                self.allocated += tensor.nbytes if _is_opaque(tensor) else tensor.untyped_storage().nbytes()
        return result


def _is_opaque(tensor: torch.Tensor) -> bool:
    """Whether it is in oneDNN's own layout, whose memory torch does not show."""
    return tensor.layout == torch._mkldnn  # type: ignore[attr-defined]


def _memory(tensor: torch.Tensor) -> int:
    """An id that tensors with shared memory have in common."""
    return id(tensor) if _is_opaque(tensor) else tensor.untyped_storage()._cdata


def figures() -> dict[str, int]:
    """Every count by name; smaller is better."""
    config = TrainConfig().replace(env_id=GAME, device="cpu")
    spec = spec_of(config.env)
    replay = local_parts(config, spec).replay
    per_env = block_bytes(config.num_envs, spec.frame_shape, spec.frame_dtype) / config.num_envs
    result = {
        "replay: bytes a transition": math.ceil(replay.nbytes / replay.capacity),
        "workers: bytes of shared memory an env": math.ceil(per_env),
    }
    for precision in ("fp32", "bf16"):
        result |= _of_loop(config, spec, precision)
    return result


def _of_loop(config: TrainConfig, spec: EnvSpec, precision: Precision) -> dict[str, int]:
    config = config.replace(
        num_workers=WORKERS,
        envs_per_worker=ENVS_PER_WORKER,
        replay_capacity=2**13,
        learning_starts=128,
        target_update_interval=10**6,
        precision=precision,
    )
    trainer = local_trainer(config, spec)
    try:
        trainer.start()
        while trainer.learner.updates < 4:  # first calls create what later ones reuse
            trainer.iterate()
        # Always greedy, so that the network is called at every tick.
        trainer.epsilon = Piecewise(((0, 0.0),))
        crossed = _bytes_of_workers()
        counted = [_of_tick(trainer) for _ in range(TICKS)]
        crossed = _bytes_of_workers() - crossed
        with Counter() as counter:
            trainer.learner.sync_target()
    finally:
        trainer.close()
    most = {name: max(of_tick[name] for of_tick in counted) for name in counted[0]}
    most["target copy: calls"] = counter.calls
    result = {f"{precision} {name}": figure for name, figure in most.items()}
    return result | {"workers: bytes through pipes a worker and tick": math.ceil(crossed / TICKS / WORKERS)}


def _of_tick(trainer: Trainer) -> dict[str, int]:
    """Calls and bytes of one tick; for the parts of an update, those of one update."""
    updates = trainer.learner.updates
    with (
        Counter() as counter,
        account_of(trainer, lambda: counter.calls) as calls,
        account_of(trainer, lambda: counter.allocated) as allocated,
    ):
        trainer.iterate()
    updates = trainer.learner.updates - updates
    result = {}
    for part in calls:
        times = updates if part in UPDATE_PARTS else 1
        result[f"{part}: calls"] = math.ceil(calls[part] / times)
        result[f"{part}: bytes allocated"] = math.ceil(allocated[part] / times)
    return result


def _bytes_of_workers() -> int:
    """Bytes that all child processes have read and written so far, by any system call."""
    counters = [child.io_counters() for child in psutil.Process().children(recursive=True)]
    return sum(of.read_chars + of.write_chars for of in counters)
