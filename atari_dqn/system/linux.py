"""What only Linux has; elsewhere each is absent or does nothing.

The package asks for it here alone. Files of /proc, /sys and /dev/shm are read where they are needed, by code that does
without. `PYTHONPATH=$PWD/tests/without_linux` takes all of this from Python and its child processes, for tests.
"""

import contextlib
import ctypes
import os
from collections.abc import Callable
from typing import Any

PR_SET_PDEATHSIG = 1


def libc(name: str) -> Callable[..., Any] | None:
    """A function of the C library, such as `prctl` or glibc's `mallopt`; None where it has none of that name."""
    function: Callable[..., Any] | None = getattr(ctypes.CDLL(None), name, None)
    return function


def allowed_cores() -> list[int]:
    """Numbers of the cores this process may use, in order; empty where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def pin(core: int) -> None:
    """Bind this process to a core, if it is there and the sandbox allows it."""
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setaffinity(0, {core})
