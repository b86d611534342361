"""Connection to a Ray cluster, and which of its nodes may have workers."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from atari_dqn.config.schema import EnvConfig
from atari_dqn.config.setting import ConfigError
from atari_dqn.envs.versions import difference, rom_of, versions
from atari_dqn.system.machine import cores
from atari_dqn.system.ray_cluster import connect, no_answer
from atari_dqn.workers.process import QUIET
from atari_dqn.workers.supervisor import WorkerError

CHECK_SECONDS = 120.0
"""Seconds within which every node must report its versions when a run starts."""
LOOK_SECONDS = 0.25
"""Seconds between two looks at a cluster that is waited for."""
OBJECT_STORE = 200_000_000
"""Bytes of the object store of a Ray that is started here; results are small and travel beside it."""
LARGEST_MESSAGE = 64_000_000
"""Bytes up to which a node's result travels in its answer. By default Ray stores more than 100 kB, or 14 frames, to be
fetched by a second round trip."""
NICENESS = "RAY_worker_niceness"
"""Ray's setting for a worker's niceness above its node's: by default 15, which starves it beside a learner"""
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Ray's setting for how long a process lives without the cluster's head, in seconds"""


@dataclasses.dataclass(frozen=True)
class Node:
    """A machine of the cluster."""

    id: str
    name: str
    """Its host name and the first digits of its id, as two nodes may share a host."""
    cpus: int
    """CPUs that Ray may give away in all."""


class Cluster:
    """The nodes of the cluster that this process is connected to.

    A node may have workers once it has reported our versions. One that failed must report again.
    """

    def __init__(self, address: str, game: str, say: Callable[[str], None]) -> None:
        """`game` is the name of the game's ROM, or empty; `say` is called with lines for the user."""
        import ray

        self.address, self._games, self._say = address, [game] if game else [], say
        self._ours = versions(self._games)
        self._accepted: set[str] = set()
        self._refused: dict[str, str] = {}
        """What differs on nodes that may have no workers"""
        self._asked: dict[str, Any] = {}
        """Answers to come, by node"""
        self.lost = False
        """Whether the connection was found to be lost"""
        here = ray.get_runtime_context().get_node_id()
        node = next(node for node in ray.nodes() if node["NodeID"] == here)
        self._needed = {
            "head": _host_and_port(address),
            "node here": (node["NodeManagerAddress"], node["NodeManagerPort"]),
        }
        """What this process cannot do without, and where it listens"""

    def check_connection(self) -> None:
        """Raise `WorkerError` if the cluster's head or this machine's Ray is gone: without them Ray calls may hang."""
        for what, (host, port) in self._needed.items():
            if fault := no_answer(host, port):
                self.lost = True
                raise WorkerError(f"lost the Ray cluster at {self.address}: its {what} ({host}:{port}): {fault}")

    def nodes(self) -> dict[str, Node]:
        """Living nodes by id, those included that may have no workers."""
        import ray

        alive = [node for node in ray.nodes() if node["Alive"]]
        return {
            node["NodeID"]: Node(
                node["NodeID"],
                f"{node['NodeManagerHostname']} ({node['NodeID'][:6]})",
                int(node["Resources"].get("CPU", 0)),
            )
            for node in alive
        }

    def usable(self) -> dict[str, Node]:
        """Living nodes that may have workers, by id; asks new ones for their versions."""
        nodes = self.nodes()
        self._ask(nodes)
        return {id: node for id, node in nodes.items() if id in self._accepted}

    def free(self, nodes: dict[str, Node]) -> dict[str, int]:
        """Whole free CPUs of `nodes`, by id."""
        from ray._private.state import available_resources_per_node  # Ray has no public name for it

        available = available_resources_per_node()
        return {id: int(available.get(id, {}).get("CPU", 0)) for id in nodes}

    def ask_again(self, node: Node) -> None:
        """Let a node have no workers until it has reported its versions again."""
        self._accepted.discard(node.id)
        self._asked.pop(node.id, None)

    def check_versions(self) -> None:
        """Wait until every node has reported. Raises `ConfigError` for other versions and for silence."""
        begin, said = time.monotonic(), False
        while True:
            nodes = self.nodes()
            self._ask(nodes)
            silent = [node.name for id, node in nodes.items() if id not in {*self._accepted, *self._refused}]
            if not silent:
                break
            seconds = time.monotonic() - begin
            if seconds > CHECK_SECONDS:
                raise ConfigError(f"--cluster: no answer from {', '.join(silent)}; try `ray stop` there")
            if seconds > QUIET and not said:
                said = True
                self._say(f"waiting for the versions of {', '.join(silent)}")
            time.sleep(LOOK_SECONDS)
        if self._refused:
            raise ConfigError(
                f"--cluster: {'; '.join(self._refused.values())}; install the same as here, or stop Ray there"
            )

    def _ask(self, nodes: dict[str, Node]) -> None:
        """Ask new nodes for their versions, and read the answers that have come."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._asked = {id: answer for id, answer in self._asked.items() if id in nodes}
        for id in nodes.keys() - self._accepted - self._refused.keys() - self._asked.keys():
            place = NodeAffinitySchedulingStrategy(id, soft=False)
            task = ray.remote(versions).options(num_cpus=0, max_retries=0, scheduling_strategy=place)
            self._asked[id] = task.remote(self._games)
        if not self._asked:
            return
        answers = {answer: id for id, answer in self._asked.items()}
        for answer in ray.wait(list(answers), num_returns=len(answers), timeout=0)[0]:
            id = answers[answer]
            del self._asked[id]
            try:
                fault = difference(ray.get(answer), self._ours)
            except ray.exceptions.RayTaskError as error:
                fault = f"no answer about its versions ({str(error).strip().splitlines()[-1]})"
            except ray.exceptions.RayError:
                continue  # it is about to be gone, or is asked again
            if fault:
                self._refused[id] = f"node {nodes[id].name} has {fault}"
                self._say(f"not used: {self._refused[id]}")
            else:
                self._accepted.add(id)


@contextlib.contextmanager
def connected(address: str, env: EnvConfig, say: Callable[[str], None]) -> Iterator[Cluster]:
    """Connect to the Ray cluster whose head is at `address` (HOST:PORT), to this machine's for `auto`, or start one on
    this machine for `local`.

    `say` is called with lines for the user. Raises `ConfigError` if there is no cluster, if it has too few free CPUs
    for the workers that the settings ask for, or if versions differ.
    """
    # Read when Ray is imported: by default it ends this process a minute after the head is gone, saved or not.
    os.environ[RECONNECT] = str(10**6)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # this and the next are for a Ray that is started here
    os.environ.setdefault(NICENESS, "0")
    here = {"num_cpus": max(env.num_workers, cores())} if address == "local" else {}
    terminated = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        connect(address, object_store_memory=OBJECT_STORE, log_to_driver=False, **here)
    import ray

    try:
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        ray._private.worker._worker_logs_enabled = False  # the one switch for what Ray prints here of nodes that die
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray set its own
        cluster = Cluster(ray.get_runtime_context().gcs_address, rom_of(env.env_id), say)
        cluster.check_versions()
        nodes = cluster.usable()
        free = cluster.free(nodes)
        check_room(free, nodes, env.num_workers, env.num_workers * env.envs_per_worker)
        found = ", ".join(f"{nodes[id].name} {cpus} of {nodes[id].cpus}" for id, cpus in free.items())
        say(f"cluster at {cluster.address}: {len(nodes)} nodes; free CPUs: {found}")
        yield cluster
    finally:
        ray.shutdown()


def check_room(free: dict[str, int], nodes: dict[str, Node], num_workers: int, num_envs: int) -> None:
    """Raise `ConfigError` with what would be right unless there are `num_workers` free CPUs."""
    total = sum(free.values())
    if num_workers <= total:
        return
    found = ", ".join(f"{nodes[id].name} {cpus} of {nodes[id].cpus}" for id, cpus in free.items())
    fits = max((workers for workers in range(1, total + 1) if num_envs % workers == 0), default=0)
    advice = f"--num-workers {fits} --envs-per-worker {num_envs // fits}, or " if fits else ""
    raise ConfigError(
        f"--num-workers {num_workers}: the cluster has {total} free CPUs ({found}); try {advice}more nodes"
    )


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)
