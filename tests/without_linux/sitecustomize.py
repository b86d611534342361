"""Python without what Linux alone has: `PYTHONPATH=tests/without_linux pytest ...`, child processes included.

This shows that the package starts, trains and ends its processes elsewhere; it does not show what macOS does otherwise.
"""

import ctypes
import fcntl
import io
import multiprocessing.heap
import os
from typing import Any

for module, names in {
    os: "sched_getaffinity sched_setaffinity pidfd_open memfd_create eventfd",
    fcntl: "F_SETPIPE_SZ F_GETPIPE_SZ",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

_getattr, _open = ctypes.CDLL.__getattr__, io.open


def _symbol(library: ctypes.CDLL, name: str) -> Any:
    if name in ("prctl", "mallopt"):
        raise AttributeError(f"symbol not found: {name}")
    return _getattr(library, name)


def _open_elsewhere(file: Any, *arguments: Any, **named: Any) -> Any:
    """What pathlib calls. psutil, whose /proc stands in for the interfaces of other systems, calls the built-in one."""
    if str(file).startswith(("/proc/", "/sys/", "/dev/shm/")):
        raise FileNotFoundError(2, "No such file or directory", str(file))
    return _open(file, *arguments, **named)


ctypes.CDLL.__getattr__ = _symbol  # type: ignore[method-assign]
io.open = _open_elsewhere
multiprocessing.heap.Arena._dir_candidates = []  # type: ignore[attr-defined]
