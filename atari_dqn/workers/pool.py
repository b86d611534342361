"""Actions flow in, `StepResult` flows out: many envs in worker processes, behind separate `send` and `recv`.

Pipes carry commands and acknowledgements; everything else lies in one block of anonymous shared memory, of which
each worker writes its slice. A worker that raises, dies or hangs is named, killed and replaced; its envs then begin
anew, as after the end of an episode. No process outlives the pool, whatever ends it.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from multiprocessing import util
from typing import Any

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.protocol import EnvSpec, Protocol
from atari_dqn.envs.step import StepResult
from atari_dqn.system.processes import quiet_spawn
from atari_dqn.workers import worker
from atari_dqn.workers.history import NO_SEED, History
from atari_dqn.workers.process import CONTEXT, GRACE, Failures, Stacks, WorkerProcess, cores_of
from atari_dqn.workers.shared_memory import block_bytes, map_block, room_fault

START_DEADLINE = 120.0
"""Seconds that a worker may take at least to get ready or to reset: imports and ROMs load slowly on a busy machine."""
ANCHOR_EVERY = 10_000
"""Ticks after which an exact run seeds an env anew. It costs 85 ms each time for an Atari game, 2%, and at a resume up
to so many ticks, and a game, are played again."""


class WorkerError(RuntimeError):
    """A worker raised, died or hung, too often; the message names it and its envs and shows its traceback or stack."""


class WorkerPool:
    """`num_workers` processes with `envs_per_worker` envs each; env e lives in worker `e // envs_per_worker`.

    Results do not depend on how the envs are dealt out to workers. Raises `WorkerError` when a worker cannot make its
    envs or reset them. Later a worker that raises, dies, or does not answer within `deadline` seconds is replaced,
    `restarts` times in a row; then `WorkerError` is raised, too. The pool is closed by it.
    With `exact` a later pool can go on where this one stood: see `state`. `on_wait` is told of a worker that lets the
    others wait for more than a few seconds; what it raises ends the wait, and the pool can then only be closed.
    """

    def __init__(
        self,
        spec: EnvSpec,
        protocol: Protocol,
        *,
        num_workers: int,
        envs_per_worker: int,
        seed: int,
        deadline: float = 60.0,
        restarts: int = 0,
        exact: bool = False,
        on_wait: Callable[[str], None] | None = None,
    ) -> None:
        self.spec, self._protocol = spec, protocol
        self.num_envs = num_workers * envs_per_worker
        self.failures: list[str] = []
        """What befell workers that were replaced since this was last emptied; for the user"""
        self._envs_per_worker = envs_per_worker
        self._deadline = deadline
        self._history_of = (seed, self.num_envs, ANCHOR_EVERY if exact else None)
        self._exact, self._on_wait = exact, on_wait
        self._was_reset = self._sent = False
        self._over = np.zeros(self.num_envs, np.bool_)
        self._no_seeds = np.full(self.num_envs, NO_SEED)
        self._failed: dict[int, str] = {}
        """workers that could not be told what to do, and why"""
        self._ticks = 0
        self._streaks = [Failures(restarts) for _ in range(num_workers)]
        self._cores = cores_of(num_workers)
        needed = block_bytes(self.num_envs, spec.frame_shape, spec.frame_dtype)
        if fault := room_fault(needed):
            raise WorkerError(fault)
        self._workers: list[WorkerProcess] = []
        try:
            self._block = CONTEXT.RawArray(ctypes.c_byte, needed)
            self._stacks = Stacks()
        except OSError as error:
            raise WorkerError(f"the workers' shared memory or pipes cannot be made: {error}") from None
        self._result, self._orders = map_block(self._block, self.num_envs, spec.frame_shape, spec.frame_dtype)
        # runs once: at close, when the pool is forgotten, or before multiprocessing would join workers at exit
        self._stop = util.Finalize(self, _stop, args=(self._workers, self._stacks), exitpriority=10)
        try:
            with quiet_spawn():
                for index in range(num_workers):
                    self._workers.append(self._start(index))
            self._must(self._outcomes(range(num_workers), START_DEADLINE))
        except OSError as error:
            self._kill()
            raise WorkerError(f"{self._name(len(self._workers))} cannot be started: {error}") from None
        except BaseException:
            self._kill()
            raise

    def reset(self) -> StepResult:
        """Start an episode in every env from its seed, as at the pool's beginning. `is_reset` is True for all."""
        self._check_idle()
        self._history = History(*self._history_of)
        self._reset(range(len(self._workers)), self._history.seeds)
        self._over[:] = False
        self._was_reset = True
        return self._result

    def send(self, actions: npt.NDArray[np.integer[Any]]) -> None:
        """Let every env take its action, [N] integers, and return at once; `recv` brings what came of it.

        The action of an env whose episode has just ended is ignored: that env is reset at this tick.
        Raises `ValueError` for an action out of range, before any env has moved.
        """
        self._check_idle()
        if not self._was_reset:
            raise RuntimeError("send before reset")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(f"actions are {actions.dtype} {actions.shape}; {self.num_envs} integers are needed")
        wrong = np.flatnonzero((actions < 0) | (actions >= self.spec.num_actions))
        if wrong.size:
            env = int(wrong[0])
            raise ValueError(f"action {actions[env]} of env {env} is not from 0 to {self.spec.num_actions - 1}")
        command, self._seeds = worker.STEP, self._no_seeds
        if self._exact and (due := self._history.due(self._over)).any():
            self._orders.seeds[:] = self._seeds = self._history.draw(due)
            command = worker.STEP_AND_SEED
        self._orders.actions[:] = actions
        self._failed = self._command(command, range(len(self._workers)))
        self._sent = True

    def recv(self) -> StepResult:
        """Wait until every env has taken the action sent last. The arrays are views, valid until the next command.

        Where a worker had to be replaced, `is_reset` is True for its envs though their episodes had not ended.
        """
        self._check_open()
        if not self._sent:
            raise RuntimeError("recv without send")
        self._ticks += 1
        told = _without(range(len(self._workers)), self._failed)
        failed = self._failed | self._outcomes(told, self._deadline)
        if failed:
            self._replace(failed)
        if failed or self._exact:
            self._history.add(self._orders.actions, self._seeds)
        if self._exact:
            self._over = self._result.terminated | self._result.truncated
        self._sent = False
        return self._result

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """What `restore` needs to bring the envs back to where they stand between two ticks; empty unless `exact`."""
        return self._history.state()

    def restore(self, state: Mapping[str, npt.NDArray[Any]], on_tick: Callable[[int, int], None]) -> StepResult:
        """Bring the envs to where they stood at `state()`, by the same ticks once more; returns the last one's result.

        `on_tick` is called after each with how many are done, of how many. Raises `WorkerError` when a worker fails.
        """
        self._check_idle()
        self._history = history = History(*self._history_of)
        history.load(state)
        # A worker begins when the first of its envs does, not before: what had befallen its forerunner was done by
        # actions of then. Its other envs play on without meaning until their own time comes.
        began = history.anchors.reshape(len(self._workers), -1).min(axis=1)
        everyone = np.arange(len(self._workers))
        self._reset(everyone[began < 0], history.seeds)
        for tick, actions in enumerate(history.ticks()):
            self._orders.actions[:] = actions
            seeded = history.anchors == tick
            self._orders.seeds[:] = np.where(seeded, history.seeds, NO_SEED)
            playing = everyone[began < tick]
            failed = self._command(worker.STEP_AND_SEED if seeded.any() else worker.STEP, playing)
            self._must(failed or self._outcomes(playing, self._deadline))
            self._reset(everyone[began == tick], history.seeds)
            on_tick(tick + 1, len(history))
        self._over = self._result.terminated | self._result.truncated
        self._was_reset = True
        return self._result

    @property
    def pids(self) -> list[int]:
        """Of the workers."""
        return [process.pid for process in self._workers]

    def close(self) -> None:
        """End every worker; one that does not exit at once is killed. Closing again does nothing."""
        self._stop()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if not self._stop.still_active():
            raise RuntimeError("the pool is closed")

    def _check_idle(self) -> None:
        self._check_open()
        if self._sent:
            raise RuntimeError("the last send waits for its recv")

    def _reset(self, workers: Collection[int], seeds: npt.NDArray[np.int64]) -> None:
        if len(workers):
            self._orders.seeds[:] = seeds
            failed = self._command(worker.RESET, workers)
            self._must(failed or self._outcomes(workers, max(self._deadline, START_DEADLINE)))

    def _start(self, index: int) -> WorkerProcess:
        arguments = (self._block, self.spec, self._protocol, self._cores[index], self.num_envs, self._envs_of(index))
        return WorkerProcess(f"env-worker-{index}", self._stacks, *arguments)

    def _command(self, command: bytes, workers: Iterable[int]) -> dict[int, str]:
        """Tell `workers`. Returns why some could not be told."""
        refused = {index: self._workers[index].command(command) for index in workers}
        return {index: why for index, why in refused.items() if why}

    def _outcomes(self, workers: Iterable[int], deadline: float) -> dict[int, str]:
        """Wait for `workers` to do what they were told. Returns what became of those that did not."""
        end, failed = time.monotonic() + deadline, {}
        # the last to be told is the last to be done: whoever waits for it first is woken once, and not for each
        for index in sorted(workers, reverse=True):
            what = self._workers[index].outcome(end, deadline, partial(self._wait, index))
            if what:
                failed[index] = what
        return failed

    def _wait(self, index: int, silent: float) -> None:
        if self._on_wait is not None:
            self._on_wait(f"{self._name(index)} has been silent for {silent:.0f} s")

    def _must(self, failed: dict[int, str]) -> None:
        for index, what in failed.items():
            self._kill()
            raise WorkerError(f"{self._name(index)} {what}")

    def _replace(self, failed: dict[int, str]) -> None:
        """Put new workers, their envs begun anew, in the place of failed ones, which may take several attempts."""
        while failed:
            again, begun = list(failed), np.zeros(self.num_envs, np.bool_)
            for index, what in failed.items():
                self._count(index, what)
                begun[self._envs_of(index)] = True
                former = self._workers[index]
                former.kill()
                former.close_pipes()
                former.end(0)
            failed = self._start_again(again)
            seeds = self._history.draw(begun)
            self._orders.seeds[:] = seeds
            failed |= self._outcomes(_without(again, failed), START_DEADLINE)
            failed |= self._command(worker.RESET, _without(again, failed))
            failed |= self._outcomes(_without(again, failed), max(self._deadline, START_DEADLINE))
            self._seeds = np.where(begun, seeds, self._seeds)

    def _start_again(self, workers: Iterable[int]) -> dict[int, str]:
        """Put new processes in the place of `workers`. Returns why some could not be started."""
        failed = {}
        with quiet_spawn():
            for index in workers:
                try:
                    self._workers[index] = self._start(index)
                except OSError as error:
                    failed[index] = f"cannot be started again: {error}"
        return failed

    def _count(self, index: int, what: str) -> None:
        """Note a failure; raises `WorkerError` when it is one too many in a row."""
        if too_many := self._streaks[index].add(what, self._ticks):
            self._kill()
            raise WorkerError(f"{self._name(index)} {too_many}")
        self.failures.append(f"{self._name(index)} {what}")

    def _envs_of(self, index: int) -> slice:
        return slice(index * self._envs_per_worker, (index + 1) * self._envs_per_worker)

    def _name(self, index: int) -> str:
        envs = self._envs_of(index)
        which = f"env {envs.start}" if envs.stop - envs.start == 1 else f"envs {envs.start} to {envs.stop - 1}"
        return f"worker {index} ({which} of {self.spec.env_id})"

    def _kill(self) -> None:
        for process in self._workers:
            process.kill()
        self._stop()


def _stop(workers: list[WorkerProcess], stacks: Stacks) -> None:
    """A closed pipe bids a worker to exit; `GRACE` seconds later SIGKILL does, which also ends a stopped one."""
    stacks.close()
    for process in workers:
        process.close_pipes()
    end = time.monotonic() + GRACE
    for process in workers:
        process.end(end - time.monotonic())


def _without(workers: Iterable[int], failed: Mapping[int, str]) -> list[int]:
    return [index for index in workers if index not in failed]
