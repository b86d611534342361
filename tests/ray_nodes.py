"""A Ray cluster of several nodes on this machine, for tests that start, kill and freeze nodes."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import psutil

from atari_dqn.distributed.cluster import NICENESS, Cluster

LIMIT = 180.0
"""Seconds after which what should have happened hangs."""
ATTEMPTS = 10
PORTS = ("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port", "metrics_export_port")


class Nodes:
    """Nodes of one cluster, each of which counts as a machine with so many CPUs; the first is the head."""

    def __init__(self, *cpus: int) -> None:
        from ray.cluster_utils import Cluster as RayCluster

        os.environ[NICENESS] = "0"  # by default 15, with which tests starve on a busy machine
        self.cluster = RayCluster()
        for number in cpus:
            self.add(number)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    @property
    def head(self) -> str:
        """Id of the head's node."""
        return str(self.cluster.list_all_nodes()[0].node_id)

    def add(self, cpus: int, **settings: Any) -> Any:
        """Start a node. Ray gives up on one that a busy machine does not start within 15 seconds: try again."""
        for attempt in range(ATTEMPTS):
            with contextlib.ExitStack() as stack:
                sockets = [stack.enter_context(socket.socket()) for _ in PORTS]
                for each in sockets:
                    each.bind(("", 0))
                ports = dict(zip(PORTS, (each.getsockname()[1] for each in sockets), strict=True))
            try:
                return self.cluster.add_node(
                    wait=False,
                    num_cpus=cpus,
                    object_store_memory=80_000_000,
                    include_dashboard=False,
                    include_log_monitor=False,
                    no_monitor=True,
                    **ports,
                    **settings,
                )
            except Exception:
                if attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

    def kill(self, id: str) -> None:
        """Kill a node as a power cut does, with all that runs on it."""
        node = self.of(id)
        for process in processes_of(node):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.cluster.remove_node(node, allow_graceful=False)

    def of(self, id: str) -> Any:
        return next(node for node in self.cluster.list_all_nodes() if node.node_id == id)

    def close(self) -> None:
        self.cluster.shutdown()


def until(happened: Callable[[], object], seconds: float = LIMIT) -> None:
    """Wait for something that must happen."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def all_free(cluster: Cluster) -> bool:
    """Whether nobody uses a CPU: Ray hears a little later that an actor is gone."""
    nodes = cluster.nodes()
    return (
        cluster.free(nodes) == {id: node.cpus for id, node in nodes.items()}
        and nodes.keys() == Cluster.usable(cluster).keys()
    )


def is_gone(process: psutil.Process) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def processes_of(node: Any) -> list[psutil.Process]:
    """A node's raylet and everything that it started; empty once the raylet is gone."""
    try:
        raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
        return [raylet, *raylet.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def actor_pids(pool: Any) -> dict[str, int]:
    """Process ids of a pool's actors, by the id of their nodes."""
    import ray

    shares = getattr(pool, "workers", pool)._supervisor.shares
    pids = ray.get([share.actor.__ray_call__.remote(lambda self: __import__("os").getpid()) for share in shares])
    return {share.node.id: pid for share, pid in zip(shares, pids, strict=True)}
