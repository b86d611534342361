"""Pool of worker processes that step many environments, behind separate `send` and `recv`.

A supervisor runs the workers, by default on this machine. When a worker had to be replaced, its environments start new
episodes. No process outlives the pool, however it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.protocol import EnvSpec, Protocol
from atari_dqn.envs.step import StepResult
from atari_dqn.workers import worker
from atari_dqn.workers.history import NO_SEED, History
from atari_dqn.workers.local import LocalSupervisor
from atari_dqn.workers.supervisor import Supervisor, WorkerError, without

__all__ = ["WorkerError", "WorkerPool"]

ANCHOR_EVERY = 10_000
"""Ticks after which an exact run seeds an environment again. Each time costs 85 ms for an Atari game, 2% in all, and a
resume repeats up to this many ticks and one game."""


class WorkerPool:
    """`num_workers` processes with `envs_per_worker` environments each; env e lives in worker `e // envs_per_worker`.

    Results do not depend on how environments are distributed over workers. `WorkerError` closes the pool.
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
        supervisor: Callable[..., Supervisor] = LocalSupervisor,
    ) -> None:
        """Start the workers.

        Args:
            spec: The environment.
            protocol: How an Atari game is presented.
            num_workers: Number of processes.
            envs_per_worker: Number of environments in each.
            seed: Seed from which the environments' seeds are derived.
            deadline: Seconds within which a worker must answer.
            restarts: Maximum number of consecutive failures after which a worker is still replaced.
            exact: Whether to record what `state` needs.
            on_wait: Called with a message while a worker keeps the others waiting. What it raises ends the wait; the
                pool can then only be closed.
            supervisor: Makes what runs the workers, from the arguments of `LocalSupervisor`.

        Raises:
            WorkerError: A worker cannot start or cannot make its environments.
        """
        self.spec, self.num_envs = spec, num_workers * envs_per_worker
        self._history_args = (seed, self.num_envs, ANCHOR_EVERY if exact else None)
        self._was_reset = self._sent = False
        self._over = np.zeros(self.num_envs, np.bool_)
        self._unsent: dict[int, str] = {}
        """Workers that did not get the last command, and why."""
        self._ticks = 0
        self._everyone = range(num_workers)
        self._supervisor = supervisor(spec, protocol, self._everyone, envs_per_worker, deadline, restarts, on_wait)
        self._result, self._orders = self._supervisor.result, self._supervisor.orders
        self.failures = self._supervisor.failures
        """Messages about replaced workers not yet shown to the user; the caller clears the list after showing them."""
        self._supervisor.start()

    def reset(self) -> StepResult:
        """Start an episode in every environment from its first seed. `is_reset` is True for all."""
        self._check_idle()
        self._history = History(*self._history_args)
        self._reset(self._everyone, self._history.seeds)
        self._over[:] = False
        self._was_reset = True
        return self._result

    def send(self, actions: npt.NDArray[np.integer[Any]]) -> None:
        """Let every environment take its action, and return at once; `recv` returns the results.

        Args:
            actions: [num_envs] integers. Ignored where an episode has just ended: that environment is reset instead.

        Raises:
            ValueError: An action is out of range; no environment has moved.
        """
        self._check_idle()
        if not self._was_reset:
            raise RuntimeError("send before reset")
        actions = np.asarray(actions)
        if actions.shape != (self.num_envs,) or actions.dtype.kind not in "iu":
            raise ValueError(f"actions must be {self.num_envs} integers, not {actions.dtype} {actions.shape}")
        wrong = np.flatnonzero((actions < 0) | (actions >= self.spec.num_actions))
        if wrong.size:
            env = int(wrong[0])
            raise ValueError(f"action {actions[env]} of env {env} is not from 0 to {self.spec.num_actions - 1}")
        self._seeds = self._history.draw(self._history.due(self._over))
        self._orders.seeds[:] = self._seeds
        self._orders.actions[:] = actions
        self._unsent = self._supervisor.command(worker.STEP, self._everyone)
        self._sent = True

    def recv(self) -> StepResult:
        """Wait until every environment has taken the last actions sent. The results are valid until the next command.

        Where a worker had to be replaced, `is_reset` is True for its environments though their episodes had not ended.

        Raises:
            WorkerError: A worker failed once more than it may be restarted.
        """
        self._check_open()
        if not self._sent:
            raise RuntimeError("recv without send")
        self._ticks += 1
        failed = self._unsent | self._supervisor.outcomes(worker.STEP, without(self._everyone, self._unsent))
        if failed:
            self._replace(failed)
        self._history.add(self._orders.actions, self._seeds)
        self._over = self._result.terminated | self._result.truncated
        self._sent = False
        return self._result

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return what `restore` needs to bring the environments back between two ticks; empty unless `exact`."""
        return self._history.state()

    def restore(self, state: Mapping[str, npt.NDArray[Any]], on_tick: Callable[[int, int], None]) -> StepResult:
        """Bring the environments to where they were at the `state` of a pool with as many, by repeating their ticks.

        After each tick `on_tick` is called with the number done and the number in all. Returns the last tick's result.

        Raises:
            WorkerError: A worker failed.
        """
        self._check_idle()
        self._history = history = History(*self._history_args)
        history.load(state)
        # A worker joins the replay of ticks at the oldest anchor of its environments, not before: earlier actions may
        # have made its predecessor fail. Its other environments play anything until their own anchors.
        everyone = np.array(self._everyone)
        started = history.anchors.reshape(len(everyone), -1).min(axis=1)
        self._reset(everyone[started < 0], history.seeds)
        for tick, actions in enumerate(history.ticks()):
            self._orders.actions[:] = actions
            self._orders.seeds[:] = np.where(history.anchors == tick, history.seeds, NO_SEED)
            playing = everyone[started < tick]
            self._supervisor.run(worker.STEP, playing)
            self._reset(everyone[started == tick], history.seeds)
            on_tick(tick + 1, len(history))
        self._over = self._result.terminated | self._result.truncated
        self._was_reset = True
        return self._result

    def close(self) -> None:
        """End every worker, and kill those that do not exit at once. May be called again."""
        self._supervisor.stop()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._supervisor.closed:
            raise RuntimeError("the pool is closed")

    def _check_idle(self) -> None:
        self._check_open()
        if self._sent:
            raise RuntimeError("the last send waits for its recv")

    def _reset(self, workers: Collection[int], seeds: npt.NDArray[np.int64]) -> None:
        if len(workers):
            self._orders.seeds[:] = seeds
            self._supervisor.run(worker.RESET, workers)

    def _replace(self, failed: dict[int, str]) -> None:
        """Replace failed workers and start episodes in their environments, repeatedly if their successors fail."""
        while failed:
            replaced, reset = list(failed), np.zeros(self.num_envs, np.bool_)
            for index in failed:
                reset[self._supervisor.envs_of(index)] = True
            failed = self._supervisor.replace(failed, self._ticks)
            seeds = self._history.draw(reset)
            self._orders.seeds[:] = seeds
            failed |= self._supervisor.command(worker.RESET, without(replaced, failed))
            failed |= self._supervisor.outcomes(worker.RESET, without(replaced, failed))
            self._seeds = np.where(reset, seeds, self._seeds)
