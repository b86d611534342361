"""Supervision of a pool's worker processes: start, command, wait, replace, end.

A worker that raises, dies or hangs is named and killed. It is replaced, and the trainer cuts
its episodes (`Trainer.observe`); one failure too many in a row ends the run with its state saved (`Session.run`).
"""

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from multiprocessing import util
from typing import Any

from atari_dqn.envs.make import registration
from atari_dqn.envs.protocol import EnvSpec, Protocol
from atari_dqn.system.processes import quiet_spawn
from atari_dqn.workers.process import GRACE, Tracebacks, WorkerProcess, cores_of

START_DEADLINE = 120.0
"""Minimum deadline for a start or a reset, in seconds: imports and ROMs load slowly on a busy machine."""

FORGIVE_TICKS = 100
"""Number of ticks after which a worker's earlier failures no longer count."""


class WorkerError(RuntimeError):
    """A worker raised, died or hung too often. The message names it and its environments and shows its traceback."""


class Supervisor:
    """The worker processes of one pool. Workers are named by their index; failures map indices to messages."""

    def __init__(
        self,
        spec: EnvSpec,
        protocol: Protocol,
        block: Any,
        num_workers: int,
        envs_per_worker: int,
        restarts: int,
        on_wait: Callable[[str], None] | None,
    ) -> None:
        """Prepare the workers without starting them; the arguments are those of `WorkerPool` and its shared memory."""
        self._spec, self._envs_per_worker, self._on_wait = spec, envs_per_worker, on_wait
        self._arguments = (block, registration(spec.env_id), spec, protocol)
        self._cores = cores_of(num_workers)
        self._restarts = restarts
        self._streaks: list[list[tuple[int, str]]] = [[] for _ in range(num_workers)]
        """Ticks and messages of each worker's consecutive failures, each at most `FORGIVE_TICKS` after the last."""
        self.processes: list[WorkerProcess] = []
        """Started workers, by index."""
        self.failures: list[str] = []
        """Messages about replaced workers."""
        self.tracebacks = Tracebacks()
        """Pipe by which hanging workers show their tracebacks."""
        # Runs once: when asked, when the pool is garbage, or before multiprocessing would join workers at exit.
        self.stop = util.Finalize(self, _stop, args=(self.processes, self.tracebacks), exitpriority=10)
        """Ask all workers to exit, and kill those that do not at once. May be called again."""

    def start(self) -> None:
        """Start all workers. Raises `WorkerError` if one cannot start or make its environments."""
        try:
            with quiet_spawn():
                for index in range(len(self._cores)):
                    self.processes.append(self._start(index))
            self._raise_first(self.outcomes(range(len(self._cores)), START_DEADLINE))
        except OSError as error:
            self.kill()
            raise WorkerError(f"{self._name(len(self.processes))} cannot be started: {error}") from None
        except BaseException:
            self.kill()
            raise

    def command(self, command: bytes, workers: Iterable[int]) -> dict[int, str]:
        """Send a command to `workers`. Returns the failures of those that did not get it."""
        failures = {index: self.processes[index].command(command) for index in workers}
        return {index: failure for index, failure in failures.items() if failure}

    def outcomes(self, workers: Iterable[int], deadline: float) -> dict[int, str]:
        """Wait until `workers` have done what they were sent. Returns the failures of those that have not."""
        end, failed = time.monotonic() + deadline, {}
        # The last worker to get the command is the last to finish: waiting for it first wakes this process only once.
        for index in sorted(workers, reverse=True):
            failure = self.processes[index].outcome(end, deadline, partial(self._wait, index))
            if failure:
                failed[index] = failure
        return failed

    def run(self, command: bytes, workers: Iterable[int], deadline: float) -> None:
        """Send a command and wait until it is done. Raises `WorkerError` for the first failure."""
        self._raise_first(self.command(command, workers) or self.outcomes(workers, deadline))

    def replace(self, failed: Mapping[int, str], tick: int) -> dict[int, str]:
        """Start new processes in place of those that `failed` at the pool's `tick`. Returns failures of the new ones.

        Raises `WorkerError` if a worker has failed once more in a row than it may be restarted.
        """
        for index, failure in failed.items():
            streak = self._streaks[index]
            if streak and tick - streak[-1][0] > FORGIVE_TICKS:
                streak.clear()
            streak.append((tick, failure))
            if len(streak) > self._restarts:
                count = f"failed {len(streak)} times in a row; the first time it " if len(streak) > 1 else ""
                self._raise_first({index: count + streak[0][1]})
            self.failures.append(f"{self._name(index)} {failure}")
            former = self.processes[index]
            former.close_pipes()
            former.end(0)
        again = {}
        with quiet_spawn():
            for index in failed:
                try:
                    self.processes[index] = self._start(index)
                except OSError as error:
                    again[index] = f"cannot be started again: {error}"
        return again | self.outcomes(without(failed, again), START_DEADLINE)

    def kill(self) -> None:
        """End every worker at once."""
        for process in self.processes:
            process.kill()
        self.stop()

    @property
    def closed(self) -> bool:
        """Whether the workers have been ended."""
        return not self.stop.still_active()

    def envs_of(self, index: int) -> slice:
        """The environments of a worker."""
        return slice(index * self._envs_per_worker, (index + 1) * self._envs_per_worker)

    def _start(self, index: int) -> WorkerProcess:
        num_envs = len(self._cores) * self._envs_per_worker
        arguments = (*self._arguments, self._cores[index], num_envs, self.envs_of(index))
        return WorkerProcess(f"env-worker-{index}", self.tracebacks, *arguments)

    def _wait(self, index: int, silent: float) -> None:
        if self._on_wait is not None:
            self._on_wait(f"{self._name(index)} has not answered for {silent:.0f} s")

    def _raise_first(self, failed: Mapping[int, str]) -> None:
        for index, failure in failed.items():
            self.kill()
            raise WorkerError(f"{self._name(index)} {failure}")

    def _name(self, index: int) -> str:
        envs = self.envs_of(index)
        which = f"env {envs.start}" if envs.stop - envs.start == 1 else f"envs {envs.start} to {envs.stop - 1}"
        return f"worker {index} ({which} of {self._spec.env_id})"


def _stop(processes: list[WorkerProcess], tracebacks: Tracebacks) -> None:
    tracebacks.close()
    for process in processes:
        process.close_pipes()
    end = time.monotonic() + GRACE
    for process in processes:
        process.end(end - time.monotonic())


def without(workers: Iterable[int], failed: Mapping[int, str]) -> list[int]:
    """The workers that have not failed."""
    return [index for index in workers if index not in failed]
