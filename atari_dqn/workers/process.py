"""One worker process as the pool sees it: a command of one byte flows in, and out, within a deadline, that it was done,
or in words what became of the process instead: it raised, died, or hangs.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from atari_dqn.workers import worker

CONTEXT = multiprocessing.get_context("spawn")
GRACE = 1.0
"""Seconds that a worker is given to answer or to exit when it should do so at once."""
QUIET = 5.0
"""Seconds of silence after which a worker is worth a word to the user."""
GONE = b"?"
"""In place of an answer: the pipe has no other end."""

SOUND_TICKS = 100
"""Ticks after which a worker's former failures are forgiven."""


class Stacks:
    """The pipe by which a hanging worker tells where it is; one for all workers of a pool."""

    def __init__(self) -> None:
        self._told, self.told_by = CONTEXT.Pipe(duplex=False)

    def ask(self, pid: int) -> str:
        """The stack of process `pid`: it answers while Python or C code runs or waits, unless it is stopped."""
        self._read(0)  # what a worker that is gone by now had told too late
        os.kill(pid, signal.SIGUSR1)
        return self._read(GRACE).decode(errors="replace")

    def _read(self, seconds: float) -> bytes:
        text = b""
        while self._told.poll(GRACE / 10 if text else seconds):
            text += os.read(self._told.fileno(), 65536)
        return text

    def close(self) -> None:
        self._told.close()
        self.told_by.close()


class WorkerProcess:
    """A started worker; it answers its start as it does a command. To be made within `quiet_spawn`."""

    def __init__(self, name: str, stacks: Stacks, *arguments: Any) -> None:
        """`arguments` are those of `worker.serve` after the pipes."""
        # two pipes: one that goes both ways is a pair of sockets, and three times as slow
        commands, self._commands = CONTEXT.Pipe(duplex=False)
        self._answers, answers = CONTEXT.Pipe(duplex=False)
        self._stacks = stacks
        places = (commands, answers, stacks.told_by, *arguments)
        self._process = CONTEXT.Process(target=worker.serve, args=places, name=name, daemon=True)
        with commands, answers:
            self._process.start()
        self._poller = select.poll()
        self._poller.register(self._answers, select.POLLIN)
        self._poller.register(self._process.sentinel, select.POLLIN)
        os.set_blocking(self._answers.fileno(), False)

    def command(self, command: bytes) -> str:
        """Tell it. Returns why it cannot be told, empty when it was."""
        try:
            os.write(self._commands.fileno(), command)
        except OSError:
            return self._death()
        return ""

    def outcome(self, end: float, deadline: float, on_wait: Callable[[float], None]) -> str:
        """Wait until `end` (of `time.monotonic`) for what was commanded to be done. Returns why it is not, or nothing.

        `deadline` is how long the wait is in all, for the message. Once the worker has been silent for `QUIET` seconds,
        `on_wait` is called with how many it is, every second; what it raises ends the wait.
        """
        answer = self._answer(0.0) or self._answer(min(QUIET, end - time.monotonic()))
        silent = QUIET
        while answer is None and time.monotonic() < end:
            on_wait(silent)
            answer = self._answer(min(1.0, end - time.monotonic()))
            silent += 1
        # when a job is stopped and continued, its clock has run, it has not
        answer = answer or self._answer(GRACE)
        if answer == worker.FAILED:
            os.set_blocking(self._answers.fileno(), True)
            with contextlib.suppress(OSError, EOFError):
                if self._answers.poll(GRACE):  # all of it then, for it is no more than a pipe holds
                    return f"failed:\n{self._answers.recv_bytes().decode(errors='replace')}"
            return "failed, and was ended before it could say of what"
        if answer is None:
            return f"has not answered for {deadline:g} s and hangs{self._whereabouts()}"
        return "" if answer == worker.DONE else self._death()

    def close_pipes(self) -> None:
        """Bid it to exit."""
        self._commands.close()
        self._answers.close()

    def end(self, seconds: float) -> None:
        """Wait so long for it to exit; then SIGKILL, which also ends a stopped process."""
        self._process.join(max(0.0, seconds))
        self._process.kill()
        self._process.join()

    def kill(self) -> None:
        self._process.kill()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def _answer(self, seconds: float) -> bytes | None:
        """The byte that it answers, `GONE` if it is dead, None if it says nothing for so long."""
        if seconds > 0:
            self._poller.poll(seconds * 1000)
        try:
            return os.read(self._answers.fileno(), 1) or GONE
        except BlockingIOError:
            # Whatever its env has begun may hold the pipe open after its death.
            return None if self._process.is_alive() else GONE
        except OSError:
            return GONE

    def _whereabouts(self) -> str:
        text = self._stacks.ask(self.pid)
        return f":\n{text}" if text else "; it answers no signal either, so it is stopped or stuck in the kernel"

    def _death(self) -> str:
        self._process.join(GRACE)
        code = self._process.exitcode
        if code is None:
            return "closed its pipe"
        if code >= 0:
            return f"exited with code {code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"


class Failures:
    """Those of one worker in a row, `SOUND_TICKS` or less apart."""

    def __init__(self, restarts: int) -> None:
        self._restarts = restarts
        self._causes: list[str] = []
        self._at = 0

    def add(self, what: str, tick: int) -> str:
        """Note one. Returns what to say when it is one more than `restarts`, else nothing."""
        if tick - self._at > SOUND_TICKS:
            self._causes.clear()
        self._causes.append(what)
        self._at = tick
        if len(self._causes) <= self._restarts:
            return ""
        often = f"failed {len(self._causes)} times in a row; at first it " if len(self._causes) > 1 else ""
        return f"{often}{self._causes[0]}"


def cores_of(num_workers: int) -> list[int | None]:
    """A core for each worker where they share out all cores evenly, else None for each: go where the system likes.

    Left to the system, workers woken together gather on one core while the other idles: 8 workers of one env on 2 cores
    are 4% faster in their places. With cores to spare it finds a free one itself, and knows which the learner takes.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not cores or num_workers % len(cores):
        return [None] * num_workers
    return [cores[index % len(cores)] for index in range(num_workers)]
