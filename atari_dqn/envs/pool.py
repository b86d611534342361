"""Actions flow in, `StepResult` flows out: many envs in worker processes, behind separate `send` and `recv`.

Pipes carry commands and acknowledgements; everything else lies in one block of anonymous shared memory, of which
each worker writes its slice. A worker that raises, dies or hangs is named, killed and replaced; its envs then begin
anew, as after the end of an episode. No process outlives the pool, whatever ends it.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from multiprocessing import util
from typing import Any

import numpy as np
import numpy.typing as npt

from atari_dqn.envs import worker
from atari_dqn.envs.block import StepResult, block_bytes, map_block, room_fault
from atari_dqn.envs.history import History
from atari_dqn.envs.make import EnvSpec, Protocol
from atari_dqn.envs.worker_process import CONTEXT, GRACE, Stacks, WorkerProcess
from atari_dqn.processes import quiet_spawn

START_DEADLINE = 120.0
"""Seconds that a worker may take at least to get ready or to reset: imports and ROMs load slowly on a busy machine."""
ANCHOR_EVERY = 10_000
"""Ticks after which an exact run seeds an env anew. It costs 85 ms each time for an Atari game, 2%, and at a resume up
to so many ticks, and a game, are played again."""
SOUND_TICKS = 1_000
"""Ticks after which a worker's former failures are forgiven."""


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
        self.troubles: list[str] = []
        """What befell workers that were replaced since this was last emptied; for the user"""
        self._envs_per_worker = envs_per_worker
        self._deadline, self._restarts = deadline, restarts
        self._history_of = (seed, self.num_envs, ANCHOR_EVERY if exact else None)
        self._exact, self._on_wait = exact, on_wait
        self._was_reset = self._sent = False
        self._over = np.zeros(self.num_envs, np.bool_)
        self._failed: dict[int, str] = {}
        """workers that could not be told what to do, and why"""
        self._ticks = 0
        self._causes: list[list[str]] = [[] for _ in range(num_workers)]
        """of each worker's failures in a row"""
        self._failed_at = [0] * num_workers
        self._cores = _cores_of(num_workers)
        needed = block_bytes(self.num_envs, spec.frame_shape, spec.frame_dtype)
        if fault := room_fault(needed):
            raise WorkerError(fault)
        self._block = CONTEXT.RawArray(ctypes.c_byte, needed)
        self._result, self._orders = map_block(self._block, self.num_envs, spec.frame_shape, spec.frame_dtype)
        self._workers: list[WorkerProcess] = []
        self._stacks = Stacks()
        # runs once: at close, when the pool is forgotten, or before multiprocessing would join workers at exit
        self._stop = util.Finalize(self, _stop, args=(self._workers, self._stacks), exitpriority=10)
        try:
            with quiet_spawn():
                for index in range(num_workers):
                    self._workers.append(self._start(index))
        except BaseException:
            self._kill()
            raise
        self._must(self._outcomes(range(num_workers), START_DEADLINE))

    def reset(self) -> StepResult:
        """Start an episode in every env from its seed, as at the pool's beginning. `is_reset` is True for all."""
        self._check_idle()
        self._history = History(*self._history_of)
        return self._begin()

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
        command = worker.STEP
        if self._exact:
            due = self._history.due(self._over)
            self._seeds = self._history.draw(due)
            if due.any():
                self._orders.seeds[:] = self._seeds
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
        if self._exact:
            self._history.add(self._orders.actions, self._seeds)
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
        self._history = History(*self._history_of)
        self._history.load(state)
        self._begin()
        everyone = range(len(self._workers))
        for done, (actions, seeds) in enumerate(self._history.ticks(), start=1):
            self._orders.actions[:] = actions
            if seeds is not None:
                self._orders.seeds[:] = seeds
            failed = self._command(worker.STEP if seeds is None else worker.STEP_AND_SEED, everyone)
            self._must(failed or self._outcomes(everyone, self._deadline))
            on_tick(done, len(self._history))
        self._over = self._result.terminated | self._result.truncated
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

    def _begin(self) -> StepResult:
        everyone = range(len(self._workers))
        self._orders.seeds[:] = self._history.seeds
        failed = self._command(worker.RESET, everyone)
        self._must(failed or self._outcomes(everyone, max(self._deadline, START_DEADLINE)))
        self._over[:] = False
        self._was_reset = True
        return self._result

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
            begun = np.zeros(self.num_envs, np.bool_)
            with quiet_spawn():
                for index, what in failed.items():
                    self._count(index, what)
                    begun[self._envs_of(index)] = True
                    former = self._workers[index]
                    former.kill()
                    former.close_pipes()
                    former.end(0)
                    self._workers[index] = self._start(index)
            again, seeds = list(failed), self._history.draw(begun)
            self._orders.seeds[:] = seeds
            failed = self._outcomes(again, START_DEADLINE)
            failed |= self._command(worker.RESET, _without(again, failed))
            failed |= self._outcomes(_without(again, failed), max(self._deadline, START_DEADLINE))
            if self._exact:
                self._seeds = np.where(begun, seeds, self._seeds)

    def _count(self, index: int, what: str) -> None:
        """Note a failure; raises `WorkerError` when it is one too many in a row."""
        causes = self._causes[index]
        if self._ticks - self._failed_at[index] > SOUND_TICKS:
            causes.clear()
        causes.append(what)
        self._failed_at[index] = self._ticks
        if len(causes) > self._restarts:
            self._kill()
            often = f"failed {len(causes)} times in a row; at first it " if len(causes) > 1 else ""
            raise WorkerError(f"{self._name(index)} {often}{causes[0]}")
        self.troubles.append(f"{self._name(index)} {what}")

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


def _cores_of(num_workers: int) -> list[int | None]:
    """A core for each worker where they share out all cores evenly, else None for each: go where the system likes.

    Left to the system, workers woken together gather on one core while the other idles: 8 workers of one env on 2 cores
    are 4% faster in their places. With cores to spare it finds a free one itself, and knows which the learner takes.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not cores or num_workers % len(cores):
        return [None] * num_workers
    return [cores[index % len(cores)] for index in range(num_workers)]
