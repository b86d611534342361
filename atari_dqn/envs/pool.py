"""Actions flow in, `StepResult` flows out: many envs in worker processes, behind separate `send` and `recv`.

Pipes carry commands and acknowledgements; everything else lies in one block of anonymous shared memory, of which
each worker writes its slice. A worker that raises, dies or hangs becomes a `WorkerError` that names it, and no
process outlives the pool, whatever ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import select
import signal
import time
from multiprocessing import util
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from atari_dqn.envs import worker
from atari_dqn.envs.block import StepResult, block_bytes, map_block
from atari_dqn.envs.make import EnvSpec, Protocol
from atari_dqn.processes import quiet_spawn

START_DEADLINE = 120.0
"""Seconds that a worker may take at least to get ready or to reset: imports and ROMs load slowly on a busy machine."""
GRACE = 1.0
"""Seconds that a worker is given to answer or to exit when it should do so at once."""
GONE = b"?"
"""In place of an answer: the pipe has no other end."""


class WorkerError(RuntimeError):
    """A worker raised, died or hung; the message names it and its envs and shows its traceback or stack."""


def env_seeds(seed: int, num_envs: int) -> list[int]:
    """A seed for each env, 31 bits, all distinct; that of env e depends on `seed` and e alone."""
    root = int(np.random.SeedSequence(seed).generate_state(1)[0])
    stride = 0x9E3779B1  # odd, so that no two of 2^31 envs meet
    return [(root + env * stride) % 2**31 for env in range(num_envs)]


class WorkerPool:
    """`num_workers` processes with `envs_per_worker` envs each; env e lives in worker `e // envs_per_worker`.

    Results do not depend on how the envs are dealt out to workers. Raises `WorkerError` when a worker cannot make
    its envs, and later when one raises, dies, or does not answer within `deadline` seconds; the pool is closed then.
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
    ) -> None:
        self.spec = spec
        self.num_envs = num_workers * envs_per_worker
        self._envs_per_worker = envs_per_worker
        self._deadline = deadline
        self._was_reset = False
        self._sent = False
        context = multiprocessing.get_context("spawn")
        block = context.RawArray(ctypes.c_byte, block_bytes(self.num_envs, spec.frame_shape, spec.frame_dtype))
        self._result, self._actions = map_block(block, self.num_envs, spec.frame_shape, spec.frame_dtype)
        self._stacks, stacks = context.Pipe(duplex=False)
        self._processes: list[SpawnProcess] = []
        self._commands: list[Connection] = []
        self._answers: list[Connection] = []
        # runs once: at close, when the pool is forgotten, or before multiprocessing would join workers at exit
        pipes = (self._commands, self._answers, [self._stacks])
        self._stop = util.Finalize(self, _stop, args=(self._processes, pipes), exitpriority=10)
        seeds, cores = env_seeds(seed, self.num_envs), _cores_of(num_workers)
        try:
            with stacks, quiet_spawn():
                for first in range(0, self.num_envs, envs_per_worker):
                    # two pipes: one that goes both ways is a pair of sockets, and three times as slow
                    commands, to_worker = context.Pipe(duplex=False)
                    from_worker, answers = context.Pipe(duplex=False)
                    self._commands.append(to_worker)
                    self._answers.append(from_worker)
                    mine = seeds[first : first + envs_per_worker]
                    index = len(self._processes)
                    place = (cores[index], self.num_envs, first, mine)
                    arguments = (commands, answers, stacks, block, spec, protocol, *place)
                    name = f"env-worker-{index}"
                    process = context.Process(target=worker.serve, args=arguments, name=name, daemon=True)
                    with commands, answers:
                        process.start()
                    self._processes.append(process)
        except BaseException:
            self._kill()
            raise
        self._pollers = [select.poll() for _ in self._answers]
        for poller, answers in zip(self._pollers, self._answers, strict=True):
            poller.register(answers, select.POLLIN)
            os.set_blocking(answers.fileno(), False)
        self._collect(max(deadline, START_DEADLINE))

    def reset(self) -> StepResult:
        """Start an episode in every env from its seed, as at the pool's beginning. `is_reset` is True for all."""
        self._check_idle()
        self._command(worker.RESET)
        self._collect(max(self._deadline, START_DEADLINE))
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
        self._actions[:] = actions
        self._command(worker.STEP)
        self._sent = True

    def recv(self) -> StepResult:
        """Wait until every env has taken the action sent last. The arrays are views, valid until the next command."""
        self._check_open()
        if not self._sent:
            raise RuntimeError("recv without send")
        self._collect(self._deadline)
        self._sent = False
        return self._result

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

    def _command(self, command: bytes) -> None:
        for index, pipe in enumerate(self._commands):
            try:
                os.write(pipe.fileno(), command)
            except OSError:
                self._fail(index, self._death(index))

    def _collect(self, deadline: float) -> None:
        """Wait for an acknowledgement of every worker."""
        end = time.monotonic() + deadline
        # the last to be told is the last to be done: whoever waits for it first is woken once, and not for each
        for index in reversed(range(len(self._answers))):
            answer = (
                self._answer(index, 0.0)
                or self._answer(index, end - time.monotonic())
                or self._answer(index, GRACE)  # when a job is stopped and continued, its clock has run, it has not
            )
            if answer == worker.FAILED:
                os.set_blocking(self._answers[index].fileno(), True)
                self._fail(index, f"failed:\n{self._answers[index].recv_bytes().decode()}")
            if answer is None:
                self._fail(index, f"has not answered for {deadline:g} s and hangs{self._stack_of(index)}")
            if answer == GONE:
                self._fail(index, self._death(index))

    def _answer(self, index: int, seconds: float) -> bytes | None:
        """The byte that a worker answers, `GONE` if it is dead, None if it says nothing for so long."""
        if seconds > 0:
            self._pollers[index].poll(seconds * 1000)
        try:
            return os.read(self._answers[index].fileno(), 1) or GONE
        except BlockingIOError:
            return None
        except OSError:
            return GONE

    def _stack_of(self, index: int) -> str:
        """Ask a hanging worker where it is; it answers while Python code or C code runs or waits, unless stopped."""
        pid = self._processes[index].pid
        assert pid is not None
        os.kill(pid, signal.SIGUSR1)
        text = b""
        while self._stacks.poll(GRACE if not text else GRACE / 10):
            text += os.read(self._stacks.fileno(), 65536)
        if not text:
            return "; it answers no signal either, so it is stopped or stuck in the kernel"
        return f":\n{text.decode(errors='replace')}"

    def _death(self, index: int) -> str:
        process = self._processes[index]
        process.join(GRACE)
        code = process.exitcode
        if code is None:
            return "closed its pipe"
        if code >= 0:
            return f"exited with code {code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"

    def _fail(self, index: int, what: str) -> NoReturn:
        first = index * self._envs_per_worker
        last = first + self._envs_per_worker - 1
        envs = f"env {first}" if first == last else f"envs {first} to {last}"
        self._kill()
        raise WorkerError(f"worker {index} ({envs} of {self.spec.env_id}) {what}")

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
        self._stop()


def _stop(processes: list[SpawnProcess], pipes: tuple[list[Connection], ...]) -> None:
    """A closed pipe bids a worker to exit; `GRACE` seconds later SIGKILL does, which also ends a stopped one."""
    for pipe in itertools.chain(*pipes):
        pipe.close()
    end = time.monotonic() + GRACE
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        process.kill()
        process.join()


def _cores_of(num_workers: int) -> list[int | None]:
    """A core for each worker where they share out all cores evenly, else None for each: go where the system likes.

    Left to the system, workers woken together gather on one core while the other idles: 8 workers of one env on 2 cores
    are 4% faster in their places. With cores to spare it finds a free one itself, and knows which the learner takes.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if not cores or num_workers % len(cores):
        return [None] * num_workers
    return [cores[index % len(cores)] for index in range(num_workers)]
