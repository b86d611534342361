"""A worker process: one-byte commands flow in by a pipe and actions by shared memory; frames, rewards and flags flow
out by shared memory, and by another pipe one byte for done, or one for failed and the traceback.

It owns the envs of one slice of the pool and never outlives its parent. It imports neither torch nor labml.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import threading
import traceback
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.block import StepResult, map_block
from atari_dqn.envs.make import EnvSpec, Protocol, make_vector_env
from atari_dqn.processes import exit_with_parent

START, RESET, STEP = b"b", b"r", b"s"
DONE, FAILED = b".", b"!"


class Envs:
    """The envs of one worker; every command leaves its outcome in `out`."""

    def __init__(
        self, spec: EnvSpec, protocol: Protocol, seeds: list[int], actions: npt.NDArray[np.int64], out: StepResult
    ) -> None:
        self._env = make_vector_env(spec, protocol, len(seeds), out)
        self._writes_out = spec.is_atari
        self._seeds: Any = seeds
        self._actions = actions
        self._out = out
        # kept here, for what lies in shared memory may be scribbled over by its reader
        self._over = np.zeros(len(seeds), np.bool_)
        self._lives = np.zeros(len(seeds), np.int32)

    def reset(self) -> None:
        """Start an episode in every env, from its seed."""
        frames, info = self._env.reset(seed=self._seeds)
        self._over[:] = True
        self._lives[:] = 0
        nothing = np.zeros(len(self._over))
        self._write(frames, nothing, nothing, nothing, info)

    def step(self) -> None:
        """One tick of every env with the actions in shared memory."""
        outcome = self._env.step(self._actions)
        if not self._writes_out:
            self._write(*outcome)

    def close(self) -> None:
        self._env.close()

    def _write(self, frames: Any, rewards: Any, terminated: Any, truncated: Any, info: dict[str, Any]) -> None:
        out, lives_before = self._out, self._lives.copy()
        if "lives" in info:
            # gymnasium marks the envs that told their lives at this tick
            np.copyto(self._lives, info["lives"], casting="unsafe", where=info.get("_lives", True))
        np.copyto(out.frames, frames.reshape(out.frames.shape), casting="same_kind")
        out.rewards[:] = rewards
        out.terminated[:] = terminated
        out.truncated[:] = truncated
        out.lives[:] = self._lives
        out.is_reset[:] = self._over
        out.life_lost[:] = (self._lives < lives_before) & ~self._over & ~out.terminated
        np.logical_or(terminated, truncated, out=self._over)


def serve(
    commands: Connection,
    answers: Connection,
    stacks: Connection,
    block: Any,
    spec: EnvSpec,
    protocol: Protocol,
    core: int | None,
    num_envs: int,
    first_env: int,
    seeds: list[int],
) -> None:
    """Serve the envs `first_env`, `first_env + 1`, ... of a pool of `num_envs`, one per seed, until the pipes close.

    `core` is where it runs if the system lets it, None: anywhere. `stacks` takes the process's stack when SIGUSR1 asks
    for it, which works while an env hangs. SIGINT and SIGTERM are blocked from birth: they reach every process of a
    terminal or a job, but the trainer alone decides when to end.
    """
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    if core is not None:
        with contextlib.suppress(OSError):  # a sandbox may forbid it, and the core may be gone: then run anywhere
            os.sched_setaffinity(0, {core})
    threading.Thread(target=exit_with_parent, daemon=True).start()
    # bare reads and writes below: with few envs a tick is short, and a process wakes with cold caches
    envs: Envs | None = None
    mine = slice(first_env, first_env + len(seeds))
    command, trouble = START, ""
    while command and not trouble:  # reading nothing means that the pool closed the pipes
        try:
            if envs is None:
                out, actions = map_block(block, num_envs, spec.frame_shape, spec.frame_dtype)
                envs = Envs(spec, protocol, seeds, actions[mine], out.of(mine))
            elif command == RESET:
                envs.reset()
            else:
                envs.step()
        except BaseException:  # an env may even call sys.exit: whatever it was, the trainer must hear of it
            trouble = traceback.format_exc()
        try:
            os.write(answers.fileno(), FAILED if trouble else DONE)
            if trouble:
                answers.send_bytes(trouble.encode())
            else:
                command = os.read(commands.fileno(), 1)
        except OSError:
            break  # the pool closed the pipes in mid-step
    if envs is not None:
        envs.close()
