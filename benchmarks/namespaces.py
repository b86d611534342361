"""Nodes of a Ray cluster in network namespaces of their own, behind a line with a delay (Linux, as root).

Not every kernel has netem, so the line is a process that forwards packets between two TUN devices, one in the host and
one in the namespace, and holds each back for half of the round trip. Its delay can be changed and it can be cut.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import fcntl
import logging
import multiprocessing
import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
MTU = 60_000
"""Bytes of a packet: large, for a line in Python forwards few packets a second, and a result is 7 kB an environment"""
OBJECT_STORE = 100_000_000


class Line:
    """The link of one node. Its round trip takes `delay.value` seconds; a negative one cuts it."""

    def __init__(self, number: int) -> None:
        self.name, self.address = f"rp{number}", f"10.77.{number}.2"
        self.delay = multiprocessing.get_context("fork").Value(ctypes.c_double, 0.0)
        here, there = _tun(f"{self.name}h"), _tun(f"{self.name}n")
        _ip("netns", "add", self.name)
        _ip("link", "set", f"{self.name}n", "netns", self.name)
        _ip("addr", "add", f"10.77.{number}.1/30", "dev", f"{self.name}h")
        _ip("link", "set", f"{self.name}h", "mtu", str(MTU), "up")
        inside = ("-n", self.name)
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "addr", "add", f"{self.address}/30", "dev", f"{self.name}n")
        _ip(*inside, "link", "set", f"{self.name}n", "mtu", str(MTU), "up")
        _ip(*inside, "route", "add", "default", "via", f"10.77.{number}.1")
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_forward, args=(here, there, self.delay), daemon=True)
        self._process.start()
        os.close(here)
        os.close(there)

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        _ip("netns", "del", self.name)


class Namespaces:
    """A head on this machine that gives no CPUs away, and `count` nodes behind lines."""

    def __init__(self, count: int) -> None:
        import ray

        os.environ["RAY_AUTH_MODE"] = "disabled"  # else `ray start` asks for a token where this user has one
        self.lines = [Line(number) for number in range(1, count + 1)]
        host = ray.util.get_node_ip_address()
        with socket.socket() as free:
            free.bind((host, 0))
            self.address = f"{host}:{free.getsockname()[1]}"
        port = self.address.rpartition(":")[2]
        self._started = [
            _ray("--head", f"--node-ip-address={host}", f"--port={port}", "--num-cpus=0", "--include-dashboard=false")
        ]
        _wait_for(host, int(port))

    def start_nodes(self, cpus: int) -> None:
        """Start the nodes one by one: at once they would choose the same names in the file system, which they share."""
        import ray

        ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR)
        for count, line in enumerate(self.lines, 2):
            given = (f"--address={self.address}", f"--node-ip-address={line.address}", f"--num-cpus={cpus}")
            self._started.append(_ray(*given, namespace=line.name))
            while sum(node["Alive"] for node in ray.nodes()) < count:
                if self._started[-1].poll() is not None:
                    raise RuntimeError("a node could not be started; see /tmp/ray")
                time.sleep(0.5)
        ray.shutdown()

    def set_delay(self, seconds: float) -> None:
        for line in self.lines:
            line.delay.value = seconds

    def close(self) -> None:
        for started in reversed(self._started):
            started.terminate()
        for started in self._started:
            started.wait()
        for line in self.lines:
            line.close()


def _forward(here: int, there: int, delay: Any) -> None:
    """Forward packets between two TUN devices, each after half of `delay`."""
    other = {here: there, there: here}
    held: dict[int, collections.deque[tuple[float, bytes]]] = {end: collections.deque() for end in other}
    poller = select.poll()
    for end in other:
        os.set_blocking(end, False)
        poller.register(end, select.POLLIN)
    while True:
        due = min((queue[0][0] for queue in held.values() if queue), default=time.monotonic() + 0.1)
        for end, _ in poller.poll(max(0.0, due - time.monotonic()) * 1000):
            packet = os.read(end, 65536)
            if delay.value >= 0:
                held[end].append((time.monotonic() + delay.value / 2, packet))
        for end, queue in held.items():
            while queue and queue[0][0] <= time.monotonic():
                with contextlib.suppress(OSError):  # a packet may be lost
                    os.write(other[end], queue.popleft()[1])


def _tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return descriptor


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)


def _ray(*arguments: str, namespace: str = "") -> subprocess.Popen[bytes]:
    """`ray start` that lives as long as its node."""
    inside = ["ip", "netns", "exec", namespace] if namespace else []
    program = str(Path(sys.executable).with_name("ray"))
    given = ["--block", f"--object-store-memory={OBJECT_STORE}", "--disable-usage-stats"]
    return subprocess.Popen([*inside, program, "start", *given, *arguments], stdout=subprocess.DEVNULL)


def _wait_for(host: str, port: int) -> None:
    while True:
        try:
            socket.create_connection((host, port), 1).close()
            return
        except OSError:
            time.sleep(0.2)
