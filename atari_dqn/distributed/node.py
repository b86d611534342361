"""The part of a pool on one node of a cluster: the local pool's workers, as one Ray actor."""

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.make import register
from atari_dqn.envs.protocol import EnvSpec, Protocol
from atari_dqn.envs.step import StepResult
from atari_dqn.workers.local import LocalSupervisor
from atari_dqn.workers.supervisor import without

Answer = tuple[dict[int, str], StepResult | None]
"""Failures of workers by index, and what the environments of all workers of the node returned."""


class NodeWorkers:
    """Workers of one node. They have the numbers that they have in the pool."""

    def __init__(
        self,
        registered: bytes,
        spec: EnvSpec,
        protocol: Protocol,
        workers: range,
        envs_per_worker: int,
        deadline: float,
    ) -> None:
        """Prepare the workers without starting them. Raises `WorkerError` if there is no room for them."""
        register(registered)
        self._supervisor = LocalSupervisor(spec, protocol, workers, envs_per_worker, deadline, 0, None)
        self._envs = slice(workers.start * envs_per_worker, workers.stop * envs_per_worker)

    def restart(self, workers: list[int]) -> Answer:
        """Start workers that have failed or were never started."""
        return self._supervisor.restart(workers), None

    def command(
        self, command: bytes, workers: list[int], actions: npt.NDArray[np.int64], seeds: npt.NDArray[np.int64]
    ) -> Answer:
        """Let `workers` do a command; `actions` and `seeds` are those of all environments of the node, [N]."""
        orders = self._supervisor.orders.of(self._envs)
        orders.actions[:], orders.seeds[:] = actions, seeds
        failed = self._supervisor.command(command, workers)
        failed |= self._supervisor.outcomes(command, without(workers, failed))
        return failed, self._supervisor.result.of(self._envs)

    def stop(self) -> None:
        """End the workers."""
        self._supervisor.stop()
