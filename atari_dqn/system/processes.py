"""How helper processes (env workers, the labml reporter) start and end: deaf to signals, and never without parent.

Nothing here imports more than the standard library, for every helper process imports it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
import types
from collections.abc import Callable, Iterator
from multiprocessing import parent_process, resource_tracker
from multiprocessing.connection import wait

PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def quiet_spawn() -> Iterator[None]:
    """Let processes start without running the parent's script again, and deaf to SIGINT, SIGTERM and SIGHUP from birth.

    Spawn would import `__main__` in every helper: torch with it, and endless recursion where a user's script has no
    `if __name__ == "__main__"`. A helper's entry point is importable, so it needs none of it. It inherits the signal
    mask and keeps it; a signal that came meanwhile reaches this process right after.
    """
    resource_tracker.ensure_running()  # spawn would start it now, and unblock the signals
    script = sys.modules["__main__"]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end_with_parent() -> None:
    """Let this process end when its parent is gone, or the thread of it that began this one: however busy or hung it
    is then, by a thread; and on Linux, even if it is stopped, by the kernel.
    """
    threading.Thread(target=_exit_after_parent, daemon=True).start()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def hang_up_after_parent() -> Callable[[], None]:
    """What, called in a new process of a session of its own, lets the kernel send it SIGHUP when the thread that began
    it is gone, however that ended. To be made before the fork, after which little may be done (`preexec_fn`).

    SIGHUP and no other, for it comes once for each thread of a parent that is killed. Linux alone; elsewhere nothing.
    """
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else lambda option, number: None

    def before_exec() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored where the parent is under nohup
        prctl(PR_SET_PDEATHSIG, signal.SIGHUP)

    return before_exec


def _exit_after_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
