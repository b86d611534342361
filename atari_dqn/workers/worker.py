"""Worker process: steps one slice of a pool's environments on command.

One pipe brings one-byte commands, another takes the answers: one byte for done, or one for failed and the traceback.
Actions come, and frames, rewards and flags go, by shared memory. A worker never outlives its parent, and imports
neither torch nor labml.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import traceback
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.make import make_vector_env
from atari_dqn.envs.protocol import EnvSpec, Protocol
from atari_dqn.envs.step import StepResult
from atari_dqn.system.processes import end_with_parent
from atari_dqn.workers.shared_memory import Orders, map_block

START, RESET, STEP, STEP_AND_SEED = b"b", b"r", b"s", b"a"
DONE, FAILED = b".", b"!"
TRACEBACK_BYTES = 2**15
"""Maximum size of a traceback in an answer, of which the end is kept: a pipe takes this much at once."""


class Envs:
    """The environments of one worker. Every command writes its results to `out`."""

    def __init__(self, spec: EnvSpec, protocol: Protocol, first_env: int, orders: Orders, out: StepResult) -> None:
        """Make the environments that follow `orders`; for messages, they are numbered from `first_env`."""
        self._env = make_vector_env(spec, protocol, len(orders.actions), out)
        self._writes_out = spec.is_atari
        self._first_env, self._orders, self._out = first_env, orders, out
        # Kept here as well, since a reader may overwrite shared memory.
        self._over = np.zeros(len(orders.actions), np.bool_)
        self._lives = np.zeros(len(orders.actions), np.int32)

    def reset(self) -> None:
        """Start an episode in every environment, from its seed."""
        frames, info = self._env.reset(seed=self._orders.seeds.tolist())
        if not self._writes_out:
            self._write_reset(np.ones_like(self._over), frames, info)

    def step(self) -> None:
        """One tick of every environment."""
        outcome = self._env.step(self._orders.actions)
        if not self._writes_out:
            self._write_step(*outcome)

    def step_and_seed(self) -> None:
        """One tick, at whose end the environments with a seed start an episode from it, whether or not one ended."""
        self.step()
        seeded = self._orders.seeds >= 0
        if seeded.any():
            frames, info = self._env.reset(seed=self._orders.seeds.tolist(), options={"reset_mask": seeded})
            if not self._writes_out:
                self._write_reset(seeded, frames, info)

    def close(self) -> None:
        self._env.close()

    def _write_step(self, frames: Any, rewards: Any, terminated: Any, truncated: Any, info: dict[str, Any]) -> None:
        out, lives_before = self._out, self._lives.copy()
        self._write_frames(frames)
        self._check_finite("reward", rewards)
        self._update_lives(info)
        out.rewards[:] = out.raw_rewards[:] = rewards
        if "raw_reward" in info:
            self._check_finite("raw_reward", info["raw_reward"])
            np.copyto(out.raw_rewards, info["raw_reward"], casting="unsafe", where=info.get("_raw_reward", True))
        out.terminated[:] = terminated
        out.truncated[:] = truncated
        out.lives[:] = self._lives
        out.is_reset[:] = self._over
        out.life_lost[:] = (self._lives < lives_before) & ~self._over & ~out.terminated
        np.logical_or(terminated, truncated, out=self._over)

    def _write_reset(self, envs: npt.NDArray[np.bool_], frames: Any, info: dict[str, Any]) -> None:
        out = self._out
        self._write_frames(frames)
        self._lives[envs] = 0
        self._update_lives(info)
        out.rewards[envs] = out.raw_rewards[envs] = 0
        out.lives[envs] = self._lives[envs]
        out.is_reset[envs] = True
        for flags in (out.terminated, out.truncated, out.life_lost, self._over):
            flags[envs] = False

    def _write_frames(self, frames: Any) -> None:
        self._check_finite("observation", frames)
        np.copyto(self._out.frames, frames.reshape(self._out.frames.shape), casting="same_kind")

    def _update_lives(self, info: dict[str, Any]) -> None:
        if "lives" in info:
            # gymnasium marks the environments that reported their lives at this tick in `_lives`
            np.copyto(self._lives, info["lives"], casting="unsafe", where=info.get("_lives", True))

    def _check_finite(self, what: str, values: Any) -> None:
        """Raise for values that float32 cannot hold: once in the replay, they would be drawn again and again."""
        if values.dtype.kind != "f":
            return
        finite = np.abs(values) <= np.finfo(np.float32).max  # False for NaN
        if not finite.all():
            env = int(np.argmin(finite.reshape(len(values), -1).all(axis=1)))
            raise FloatingPointError(
                f"env {self._first_env + env}: {what} is NaN or too large for float32: {values[env]}"
            )


def serve(
    commands: Connection,
    answers: Connection,
    stacks: Connection,
    block: Any,
    spec: EnvSpec,
    protocol: Protocol,
    core: int | None,
    num_envs: int,
    mine: slice,
) -> None:
    """Run a worker until the pipes close: the environments `mine` of the pool's `num_envs`, on `core` (None: any).

    `block` is the pool's shared memory; `stacks` takes the process's stack on SIGUSR1, even while an environment hangs.
    The worker runs with SIGINT, SIGTERM and SIGHUP blocked: they reach every process of a terminal or a job, but the
    trainer alone decides when to end.
    """
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    if core is not None:
        with contextlib.suppress(OSError):  # a sandbox may forbid it, and the core may be gone: then run anywhere
            os.sched_setaffinity(0, {core})
    end_with_parent()
    # Bare reads and writes below: with few environments a tick is short, and a process wakes with cold caches.
    envs: Envs | None = None
    command, error = START, ""
    while command and not error:  # an empty read means that the pool closed the pipes
        try:
            if envs is None:
                out, orders = map_block(block, num_envs, spec.frame_shape, spec.frame_dtype)
                envs = Envs(spec, protocol, mine.start, orders.of(mine), out.of(mine))
            elif command == RESET:
                envs.reset()
            elif command == STEP:
                envs.step()
            else:
                envs.step_and_seed()
        except BaseException:  # an environment may even call sys.exit: the trainer must hear of anything
            error = traceback.format_exc()
        try:
            os.write(answers.fileno(), FAILED if error else DONE)
            if error:
                answers.send_bytes(error.encode(errors="backslashreplace")[-TRACEBACK_BYTES:])
            else:
                command = os.read(commands.fileno(), 1)
        except OSError:
            break  # the pool closed the pipes during a step
    if envs is not None:
        envs.close()
