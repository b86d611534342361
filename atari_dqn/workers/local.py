"""Workers that are processes of this machine, with one block of anonymous shared memory.

Pipes carry commands and acknowledgements; everything else lies in the block, of which each worker writes its slice.
"""

import ctypes
import time
from collections.abc import Callable, Collection, Iterable
from functools import partial
from multiprocessing import util

from atari_dqn.envs.make import registration
from atari_dqn.envs.protocol import EnvSpec, Protocol
from atari_dqn.system.processes import quiet_spawn
from atari_dqn.workers.process import CONTEXT, GRACE, Tracebacks, WorkerProcess, cores_of
from atari_dqn.workers.shared_memory import block_bytes, map_block, room_fault
from atari_dqn.workers.supervisor import Supervisor, WorkerError, without
from atari_dqn.workers.worker import START


class LocalSupervisor(Supervisor):
    """Worker processes of this machine."""

    def __init__(
        self,
        spec: EnvSpec,
        protocol: Protocol,
        workers: range,
        envs_per_worker: int,
        deadline: float,
        restarts: int,
        on_wait: Callable[[str], None] | None,
    ) -> None:
        """Prepare the workers without starting them. Raises `WorkerError` if there is no room for them."""
        super().__init__(spec, workers, envs_per_worker, deadline, restarts, on_wait)
        layout = workers.stop * envs_per_worker, spec.frame_shape, spec.frame_dtype
        needed = block_bytes(*layout)
        if fault := room_fault(needed):
            raise WorkerError(fault)
        try:
            block = CONTEXT.RawArray(ctypes.c_byte, needed)
            self.tracebacks = Tracebacks()
            """Pipe by which hanging workers show their tracebacks."""
        except OSError as error:
            raise WorkerError(f"cannot allocate the workers' shared memory or pipes: {error}") from None
        self.result, self.orders = map_block(block, *layout)
        self._arguments = (block, registration(spec), spec, protocol)
        self._cores = dict(zip(workers, cores_of(len(workers)), strict=True))
        self.processes: dict[int, WorkerProcess] = {}
        """Started workers, by index."""
        # Runs once: when asked, when the pool is garbage, or before multiprocessing would join workers at exit.
        self.stop = util.Finalize(self, _stop, args=(self.processes, self.tracebacks), exitpriority=10)

    def command(self, command: bytes, workers: Iterable[int]) -> dict[int, str]:
        failures = {index: self.processes[index].command(command) for index in workers}
        return {index: failure for index, failure in failures.items() if failure}

    def outcomes(self, command: bytes, workers: Iterable[int]) -> dict[int, str]:
        deadline = self._deadlines[command]
        end, failed = time.monotonic() + deadline, {}
        # The last worker to get the command is the last to finish: waiting for it first wakes this process only once.
        for index in sorted(workers, reverse=True):
            failure = self.processes[index].outcome(end, deadline, partial(self._wait_for, index))
            if failure:
                failed[index] = failure
        return failed

    def restart(self, workers: Collection[int]) -> dict[int, str]:
        for index in workers:
            if former := self.processes.pop(index, None):
                former.close_pipes()
                former.end(0)
        failed = {}
        with quiet_spawn():
            for index in workers:
                try:
                    self.processes[index] = self._start(index)
                except OSError as error:
                    failed[index] = f"cannot be started: {error}"
        return failed | self.outcomes(START, without(workers, failed))

    def kill(self) -> None:
        for process in self.processes.values():
            process.kill()
        self.stop()

    def _start(self, index: int) -> WorkerProcess:
        num_envs = self.workers.stop * self._envs_per_worker
        arguments = (*self._arguments, self._cores[index], num_envs, self.envs_of(index))
        return WorkerProcess(f"env-worker-{index}", self.tracebacks, *arguments)

    def _wait_for(self, index: int, silent: float) -> None:
        self._wait(f"{self._name(index)} has not answered for {silent:.0f} s")


def _stop(processes: dict[int, WorkerProcess], tracebacks: Tracebacks) -> None:
    tracebacks.close()
    for process in processes.values():
        process.close_pipes()
    end = time.monotonic() + GRACE
    for process in processes.values():
        process.end(end - time.monotonic())
