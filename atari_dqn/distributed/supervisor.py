"""Supervision of a pool's workers on the nodes of a cluster.

Each node's share of the workers is one Ray actor with the local pool's own supervisor, which gets one message per tick:
the command with its environments' actions and seeds. It answers with their results and the failures of its workers. The
head draws the seeds, so results do not depend on how workers are distributed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from multiprocessing import util
from typing import Any

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from atari_dqn.distributed.cluster import LARGEST_MESSAGE, LOOK_SECONDS, Cluster, Node
from atari_dqn.distributed.node import NodeWorkers
from atari_dqn.distributed.placement import crowd, ranges, spread
from atari_dqn.envs.make import registration
from atari_dqn.envs.protocol import EnvSpec, Protocol
from atari_dqn.envs.step import StepResult
from atari_dqn.workers.history import NO_SEED
from atari_dqn.workers.process import GRACE, QUIET
from atari_dqn.workers.shared_memory import Orders
from atari_dqn.workers.supervisor import Supervisor, WorkerError
from atari_dqn.workers.worker import START, STEP

NODE_GRACE = 5.0
"""Seconds that a node gets beyond its workers' deadline, and `GRACE` twice for each worker that may hang."""

LOST = "went down with node"
"""Begins the failure of every worker of a lost node"""


@dataclasses.dataclass(eq=False)
class Share:
    """Workers of one node."""

    node: Node
    workers: range
    envs: slice
    actor: Any
    answer: Any = None
    """What it was asked and has not answered"""


class ClusterSupervisor(Supervisor):
    """Workers on the nodes of a cluster."""

    def __init__(
        self,
        cluster: Cluster,
        spec: EnvSpec,
        protocol: Protocol,
        workers: range,
        envs_per_worker: int,
        deadline: float,
        restarts: int,
        on_wait: Callable[[str], None] | None,
    ) -> None:
        """Prepare the workers without starting them."""
        super().__init__(spec, workers, envs_per_worker, deadline, restarts, on_wait)
        num_envs = len(workers) * envs_per_worker
        self.result = StepResult.empty(num_envs, spec.frame_shape, spec.frame_dtype)
        self.orders = Orders(np.zeros(num_envs, np.int64), np.full(num_envs, NO_SEED))
        self._cluster = cluster
        self._arguments = (registration(spec), spec, protocol)
        self.shares: list[Share] = []
        """Shares of living nodes."""
        # Runs once: when asked, when the pool is garbage, or at exit.
        self.stop = util.Finalize(self, _stop, args=(self.shares, cluster), exitpriority=10)

    def command(self, command: bytes, workers: Iterable[int]) -> dict[int, str]:
        asked = set(map(int, workers))
        for share in self.shares:
            if mine := [index for index in share.workers if index in asked]:
                orders = self.orders.of(share.envs)
                share.answer = share.actor.command.remote(command, mine, orders.actions, orders.seeds)
        return {}

    def outcomes(self, command: bytes, workers: Iterable[int]) -> dict[int, str]:
        return self._receive(self._deadlines[command])

    def restart(self, workers: Collection[int]) -> dict[int, str]:
        asked = set(map(int, workers))
        for share in self.shares:
            if mine := [index for index in share.workers if index in asked]:
                share.answer = share.actor.restart.remote(mine)
                asked -= {*mine}
        self.shares += self._place(sorted(asked))
        return self._receive(self._deadlines[START])

    def kill(self) -> None:
        if not self._cluster.lost:
            for share in self.shares:
                _kill(share)
        self.stop()

    def _receive(self, deadline: float) -> dict[int, str]:
        """Wait for all that was asked. Returns the failures of workers, and of all those of nodes that are lost."""
        begin = time.monotonic()
        failed: dict[int, str] = {}
        for share in list(self.shares):
            if share.answer is not None:
                failed |= self._answer(share, begin, deadline)
        return failed

    def _answer(self, share: Share, begin: float, deadline: float) -> dict[int, str]:
        end = begin + deadline + NODE_GRACE + 2 * GRACE * len(share.workers)
        failed: dict[int, str] = {}
        part: StepResult | None = None
        while share.answer is not None:
            silent = time.monotonic() - begin
            try:
                failed, part = ray.get(share.answer, timeout=max(1.0, QUIET - silent))
                share.answer = None
            except ray.exceptions.GetTimeoutError:
                self._cluster.check_connection()
                if time.monotonic() > end:
                    return self._lose(share, f"it has not answered for {deadline:g} s and hangs")
                self._wait(f"node {share.node.name} has not answered for {time.monotonic() - begin:.0f} s")
            except ray.exceptions.RayError as error:
                return self._lose(share, _reason(error))
        if part is not None:
            mine = self.result.of(share.envs)
            for field in dataclasses.fields(StepResult):
                getattr(mine, field.name)[:] = getattr(part, field.name)
        return failed

    def _lose(self, share: Share, reason: str) -> dict[int, str]:
        self._cluster.check_connection()
        self.shares.remove(share)
        _kill(share)
        self._cluster.ask_again(share.node)
        return dict.fromkeys(share.workers, f"{LOST} {share.node.name}: {reason}")

    def _place(self, workers: list[int]) -> list[Share]:
        """Give workers that have no node to nodes with free CPUs, and start them there.

        Without enough free CPUs, wait for them up to the deadline of a step; then share those of the least busy nodes.
        """
        if not workers:
            return []
        begin = time.monotonic()
        while True:
            self._cluster.check_connection()
            nodes = self._cluster.usable()
            load = {id: sum(len(share.workers) for share in self.shares if share.node.id == id) for id in nodes}
            free = self._cluster.free(nodes)
            free = {id: max(0, min(cpus, nodes[id].cpus - load[id])) for id, cpus in free.items()}
            total, seconds = sum(free.values()), time.monotonic() - begin
            if total >= len(workers) or seconds > self._deadlines[STEP]:
                break
            self._wait(
                f"{len(workers)} workers wait for as many free CPUs, at most {self._deadlines[STEP]:g} s:"
                f" {total} on {len(nodes)} nodes so far, {seconds:.0f} s"
            )
            time.sleep(LOOK_SECONDS)
        if not nodes:
            self.kill()
            raise WorkerError(f"no node of the Ray cluster at {self._cluster.address} is left for the workers")
        fit = min(total, len(workers))
        placed = ranges(workers[:fit], spread(fit, free)) if fit else []
        load = {id: load[id] + sum(len(mine) for node, mine in placed if node == id) for id in nodes}
        crowded = ranges(workers[fit:], crowd(len(workers) - fit, load, {id: node.cpus for id, node in nodes.items()}))
        return [
            *(self._start(nodes[id], mine, len(mine)) for id, mine in placed),
            *(self._start(nodes[id], mine, 0) for id, mine in crowded),
        ]

    def _start(self, node: Node, workers: range, cpus: int) -> Share:
        actor: Any = (
            ray.remote(NodeWorkers)
            .options(
                num_cpus=cpus,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
                runtime_env={"env_vars": {"RAY_max_direct_call_object_size": str(LARGEST_MESSAGE)}},
            )
            .remote(*self._arguments, workers, self._envs_per_worker, self._deadlines[STEP])
        )
        envs = slice(self.envs_of(workers[0]).start, self.envs_of(workers[-1]).stop)
        return Share(node, workers, envs, actor, actor.restart.remote(list(workers)))

    def _name(self, index: int) -> str:
        nodes = [share.node.name for share in self.shares if index in share.workers]
        return super()._name(index) + (f" on node {nodes[0]}" if nodes else "")

    def _tell(self, failed: Mapping[int, str]) -> None:
        """Name each failed worker, but those of a lost node in one line."""
        lost = {failure for failure in failed.values() if failure.startswith(LOST)}
        super()._tell({index: failure for index, failure in failed.items() if failure not in lost})
        for failure in lost:
            workers = sorted(index for index, other in failed.items() if other == failure)
            self.failures += [f"{self._name_all(mine)} {failure}" for _, mine in ranges(workers, {"": len(workers)})]


def _reason(error: Exception) -> str:
    """Why an actor does not answer, in one line of Ray's many."""
    if isinstance(error, ray.exceptions.RayTaskError):
        return f"failed:\n{error}"
    if isinstance(error, ray.exceptions.ActorUnavailableError):
        return "the connection to it broke"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["its actor died"]
    if "creation task" in lines[0]:
        return lines[-1]
    dead = "The actor is dead because "  # its node has died; its worker process has died. Worker exit type: ...
    return next((line.removeprefix(dead).partition(".")[0] for line in lines if line.startswith(dead)), lines[0])


def _kill(share: Share) -> None:
    with contextlib.suppress(Exception):  # whatever Ray has to say of an actor that is to be gone
        ray.kill(share.actor)


def _stop(shares: list[Share], cluster: Cluster) -> None:
    """Ask the nodes to end their workers, and end the actors. Without Ray they end by themselves."""
    if cluster.lost or not ray.is_initialized():
        return
    with contextlib.suppress(Exception):
        ray.wait([share.actor.stop.remote() for share in shares], num_returns=len(shares), timeout=3 * GRACE)
    for share in shares:
        _kill(share)
    shares.clear()
