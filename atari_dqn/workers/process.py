"""One worker process as the pool sees it: commands, answers within a deadline, and the reason if there is none.

Failures are returned as text that completes the sentence "worker 3 ...": it raised, exited, was killed, or hangs.
"""

import contextlib
import multiprocessing
import os
import select
import signal
import time
from collections.abc import Callable
from typing import Any

from atari_dqn.system.linux import allowed_cores
from atari_dqn.workers import worker

CONTEXT = multiprocessing.get_context("spawn")
GRACE = 1.0
"""Seconds that a worker gets to answer or exit when it should do so at once."""
QUIET = 5.0
"""Seconds without an answer before the user is told."""
GONE = b"?"
"""Stands for the answer of a worker that has exited."""


class Tracebacks:
    """Pipe by which a hanging worker shows its traceback; one for all workers of a pool."""

    def __init__(self) -> None:
        self._reader, self.writer = CONTEXT.Pipe(duplex=False)

    def ask(self, pid: int) -> str:
        """Traceback of process `pid`, which answers while Python or C code runs or waits; empty if it is stopped."""
        self._read(0)  # discard what an earlier worker sent too late
        os.kill(pid, signal.SIGUSR1)
        return self._read(GRACE).decode(errors="replace")

    def _read(self, seconds: float) -> bytes:
        text = b""
        while self._reader.poll(GRACE / 10 if text else seconds):
            text += os.read(self._reader.fileno(), 65536)
        return text

    def close(self) -> None:
        self._reader.close()
        self.writer.close()


class WorkerProcess:
    """A started worker. It answers its start as it does a command. Create it within `quiet_spawn`."""

    def __init__(self, name: str, tracebacks: Tracebacks, *arguments: Any) -> None:
        """Start it; `arguments` are those of `worker.serve` after the pipes."""
        # Two pipes: a duplex one is a pair of sockets, and three times as slow.
        commands, self._commands = CONTEXT.Pipe(duplex=False)
        self._answers, answers = CONTEXT.Pipe(duplex=False)
        self._tracebacks = tracebacks
        args = (commands, answers, tracebacks.writer, *arguments)
        self._process = CONTEXT.Process(target=worker.serve, args=args, name=name, daemon=True)
        with commands, answers:
            self._process.start()
        self._poller = select.poll()
        self._poller.register(self._answers, select.POLLIN)
        self._poller.register(self._process.sentinel, select.POLLIN)
        os.set_blocking(self._answers.fileno(), False)

    def command(self, command: bytes) -> str:
        """Send a command. Returns the failure if that is impossible, else an empty string."""
        try:
            os.write(self._commands.fileno(), command)
        except OSError:
            return self._death()
        return ""

    def outcome(self, end: float, deadline: float, on_wait: Callable[[float], None]) -> str:
        """Wait for the answer to the last command until `end` (of `time.monotonic`), `deadline` seconds in all.

        Once `QUIET` seconds have passed, `on_wait` is called every second with their number; an exception from it ends
        the wait. Returns the failure, or an empty string when the command is done.
        """
        answer = self._answer(0.0) or self._answer(min(QUIET, end - time.monotonic()))
        silent = QUIET
        while answer is None and time.monotonic() < end:
            on_wait(silent)
            answer = self._answer(min(1.0, end - time.monotonic()))
            silent += 1
        # Ctrl-Z stops this process and Atari workers, but no clock: give them a moment after they are continued.
        answer = answer or self._answer(GRACE)
        if answer == worker.FAILED:
            os.set_blocking(self._answers.fileno(), True)
            with contextlib.suppress(OSError, EOFError):
                if self._answers.poll(GRACE):  # then it is complete, since a pipe holds all of it
                    return f"failed:\n{self._answers.recv_bytes().decode(errors='replace')}"
            return "failed, and ended before it could send its traceback"
        if answer is None:
            return f"has not answered for {deadline:g} s and hangs{self._traceback()}"
        return "" if answer == worker.DONE else self._death()

    def close_pipes(self) -> None:
        """Ask it to exit."""
        self._commands.close()
        self._answers.close()

    def end(self, seconds: float) -> None:
        """Wait up to `seconds` for it to exit; then send SIGKILL, which also ends a stopped process."""
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
        """Wait up to `seconds` for the byte of an answer: `GONE` if the process has exited, None if there is none."""
        if seconds > 0:
            self._poller.poll(seconds * 1000)
        try:
            return os.read(self._answers.fileno(), 1) or GONE
        except BlockingIOError:
            # A process that its environment started may hold the pipe open after its death.
            return None if self._process.is_alive() else GONE
        except OSError:
            return GONE

    def _traceback(self) -> str:
        text = self._tracebacks.ask(self.pid)
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


def cores_of(num_workers: int) -> list[int | None]:
    """A core for each worker if they can share all cores evenly; else None for each, which lets the system choose.

    Left to the system, workers woken together gather on one core while the other idles; with cores to spare it finds a
    free one itself.
    """
    cores = allowed_cores()
    if not cores or num_workers % len(cores):
        return [None] * num_workers
    return [cores[index % len(cores)] for index in range(num_workers)]
