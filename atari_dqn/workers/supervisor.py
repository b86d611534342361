"""Supervision of a pool's workers: what it does wherever they run, and what each place must provide.

A worker that raises, dies or hangs is named and killed. It is replaced, and the trainer cuts
its episodes (`Trainer.observe`); one failure too many in a row ends the run with its state saved (`Session.run`).
`local.LocalSupervisor` has the workers of this machine, `distributed.supervisor.ClusterSupervisor` those of many.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from multiprocessing import util

from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.envs.step import StepResult
from atari_dqn.workers.shared_memory import Orders
from atari_dqn.workers.worker import RESET, START, STEP

START_DEADLINE = 120.0
"""Minimum deadline for a start or a reset, in seconds: imports and ROMs load slowly on a busy machine."""

FORGIVE_TICKS = 100
"""Number of ticks after which a worker's earlier failures no longer count."""


class WorkerError(RuntimeError):
    """A worker raised, died or hung too often. The message names it and its environments and shows its traceback."""


class Supervisor(ABC):
    """The workers of one pool. Workers are named by their index; failures map indices to messages."""

    result: StepResult
    """What the environments returned, as their workers wrote it."""
    orders: Orders
    """What the environments are to do at the next command."""
    stop: util.Finalize[None]
    """Ask all workers to exit, and end those that do not at once. May be called again."""

    def __init__(
        self,
        spec: EnvSpec,
        workers: range,
        envs_per_worker: int,
        deadline: float,
        restarts: int,
        on_wait: Callable[[str], None] | None,
    ) -> None:
        """The arguments are those of `WorkerPool`; `workers` are the indices of those to supervise."""
        self.workers = workers
        self._spec, self._envs_per_worker, self._restarts, self._on_wait = spec, envs_per_worker, restarts, on_wait
        self._deadlines = {START: START_DEADLINE, RESET: max(deadline, START_DEADLINE), STEP: deadline}
        """Seconds within which each command must be done."""
        self._streaks: dict[int, list[tuple[int, str]]] = {index: [] for index in workers}
        """Ticks and messages of each worker's consecutive failures, each at most `FORGIVE_TICKS` after the last."""
        self.failures: list[str] = []
        """Messages about replaced workers."""

    def start(self) -> None:
        """Start all workers. Raises `WorkerError` if one cannot start or make its environments."""
        try:
            self._raise_first(self.restart(self.workers))
        except OSError as error:
            self.kill()
            raise WorkerError(f"the workers cannot be started: {error}") from None
        except BaseException:
            self.kill()
            raise

    @abstractmethod
    def command(self, command: bytes, workers: Iterable[int]) -> dict[int, str]:
        """Send a command to `workers`. Returns the failures of those that did not get it."""

    @abstractmethod
    def outcomes(self, command: bytes, workers: Iterable[int]) -> dict[int, str]:
        """Wait until `workers` have done the command they were sent. Returns the failures of those that have not."""

    @abstractmethod
    def restart(self, workers: Collection[int]) -> dict[int, str]:
        """Start `workers` that have failed or were never started. Returns failures, perhaps of others too."""

    @abstractmethod
    def kill(self) -> None:
        """End every worker at once."""

    def run(self, command: bytes, workers: Collection[int]) -> None:
        """Send a command and wait until it is done. Raises `WorkerError` for the first failure."""
        self._raise_first(self.command(command, workers) or self.outcomes(command, workers))

    def replace(self, failed: Mapping[int, str], tick: int) -> dict[int, str]:
        """Replace workers that `failed` at the pool's `tick`. Returns failures, as `restart`.

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
        self._tell(failed)
        return self.restart(list(failed))

    @property
    def closed(self) -> bool:
        """Whether the workers have been ended."""
        return not self.stop.still_active()

    def envs_of(self, index: int) -> slice:
        """The environments of a worker."""
        return slice(index * self._envs_per_worker, (index + 1) * self._envs_per_worker)

    def _tell(self, failed: Mapping[int, str]) -> None:
        self.failures += [f"{self._name(index)} {failure}" for index, failure in failed.items()]

    def _wait(self, what: str) -> None:
        if self._on_wait is not None:
            self._on_wait(what)

    def _raise_first(self, failed: Mapping[int, str]) -> None:
        for index, failure in failed.items():
            name = self._name(index)
            self.kill()
            raise WorkerError(f"{name} {failure}")

    def _name(self, index: int) -> str:
        return self._name_all(range(index, index + 1))

    def _name_all(self, workers: range) -> str:
        envs = range(self.envs_of(workers[0]).start, self.envs_of(workers[-1]).stop)
        return f"{_numbered('worker', workers)} ({_numbered('env', envs)} of {self._spec.env_id})"


def _numbered(what: str, indices: range) -> str:
    return f"{what} {indices[0]}" if len(indices) == 1 else f"{what}s {indices[0]} to {indices[-1]}"


def without(workers: Iterable[int], failed: Mapping[int, str]) -> list[int]:
    """The workers that have not failed."""
    return [index for index in workers if index not in failed]
