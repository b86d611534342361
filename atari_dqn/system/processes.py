"""Start and end of helper processes (env workers): shielded from signals, never orphaned.

This module imports the standard library alone, because every helper process imports it.
"""

import contextlib
import fcntl
import multiprocessing
import os
import signal
import sys
import termios
import threading
import types
from collections.abc import Callable, Iterator
from functools import cache, partial
from multiprocessing import parent_process, resource_tracker, util
from multiprocessing.connection import wait
from pathlib import Path

from atari_dqn.system.linux import PR_SET_PDEATHSIG, libc

_STARTING = threading.Lock()  # two threads at once would restore each other's empty module


@contextlib.contextmanager
def quiet_spawn() -> Iterator[None]:
    """Start processes that do not import the parent's script, with SIGINT, SIGTERM and SIGHUP blocked.

    Spawn would import `__main__` in every helper: torch with it, and an endless recursion where a user's script lacks
    `if __name__ == "__main__"`. A helper's entry point is importable without it. Helpers inherit the signal mask; a
    signal to this process arrives when the block ends.
    """
    resource_tracker.ensure_running()  # otherwise spawn starts it now, which unblocks the signals
    with _STARTING:
        script = sys.modules["__main__"]
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        sys.modules["__main__"] = types.ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = script
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def end_with_parent(*, hang_up_children: bool) -> None:
    """End this process when its parent dies, however busy it is; on Linux, when the thread that started it ends, too,
    and even if this process is stopped.

    With `hang_up_children`, processes that an environment in it started end with it even if it is killed, unless they
    ignore SIGHUP or have a session of their own.
    """
    threading.Thread(target=_exit_after_parent, daemon=True).start()
    _allow_children()
    if hang_up_children:
        _hang_up_children()
    if prctl := libc("prctl"):
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _allow_children() -> None:
    multiprocessing.current_process().daemon = False
    util.Finalize(None, _kill_children, exitpriority=100)  # before multiprocessing would wait for them
    # Children inherit the blocked signals; one that is terminated or hung up must hear of it. These signals do nothing
    # here, and are what they were in a child.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
        os.register_at_fork(after_in_child=partial(signal.signal, number, signal.SIG_DFL))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGHUP})


def _hang_up_children() -> None:
    """Lead a session with a terminal: at the leader's end, even by SIGKILL, the kernel sends SIGHUP to all of it."""
    with contextlib.suppress(OSError):  # no terminal to be had, as in some sandboxes
        _, terminal = os.openpty()
        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
        # Linux may schedule a session as a group, in which its processes' own niceness does not count outside.
        Path("/proc/self/autogroup").write_text(str(os.nice(0)))


def _kill_children() -> None:
    for child in multiprocessing.active_children():
        child.kill()


def hang_up_after_parent() -> Callable[[], None]:
    """A `preexec_fn` that has SIGHUP sent to the new process when this one ends; on Linux, when its thread does.

    It is made before the fork, after which little is safe. The signal is SIGHUP because a killed parent sends one for
    each of its threads, and a second SIGINT or SIGTERM would end a training at once.
    """
    prctl = libc("prctl")
    lifeline = -1 if prctl else _lifeline()

    def before_exec() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it is ignored if the parent runs under nohup
        if prctl:
            prctl(PR_SET_PDEATHSIG, signal.SIGHUP)
            return
        started = os.getpid()
        if os.fork() == 0:  # a process that waits for our end, and notices if the new one has ended before
            os.dup2(lifeline, 0)
            os.closerange(1, 1 << 16)  # among them pipes by which others wait for each other's end
            os.read(0, 1)
            if os.getppid() == started:
                os.kill(started, signal.SIGHUP)
            os._exit(0)

    return before_exec


@cache
def _lifeline() -> int:
    """Read end of a pipe whose write end this process alone holds, until it ends."""
    return os.pipe()[0]


def _exit_after_parent() -> None:
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
