"""A worker process: one-byte commands flow in by a pipe and actions by shared memory; frames, rewards and flags flow
out by shared memory, and by another pipe one byte for done, or one for failed and the traceback.

It owns the envs of one slice of the pool and never outlives its parent. It imports neither torch nor labml.
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
MOST_TROUBLE = 2**15
"""Bytes of a traceback that are told, the last ones: a pipe takes them at once."""


class Envs:
    """The envs of one worker, `first_env` the first of them; every command leaves its outcome in `out`."""

    def __init__(self, spec: EnvSpec, protocol: Protocol, first_env: int, orders: Orders, out: StepResult) -> None:
        self._env = make_vector_env(spec, protocol, len(orders.actions), out)
        self._writes_out = spec.is_atari
        self._first_env, self._orders, self._out = first_env, orders, out
        # kept here, for what lies in shared memory may be scribbled over by its reader
        self._over = np.zeros(len(orders.actions), np.bool_)
        self._lives = np.zeros(len(orders.actions), np.int32)

    def reset(self) -> None:
        """Start an episode in every env, from its seed."""
        frames, info = self._env.reset(seed=self._orders.seeds.tolist())
        if not self._writes_out:
            self._write_begun(np.ones_like(self._over), frames, info)

    def step(self) -> None:
        """One tick of every env with the actions in shared memory."""
        outcome = self._env.step(self._orders.actions)
        if not self._writes_out:
            self._write(*outcome)

    def step_and_seed(self) -> None:
        """A tick at whose end the envs that are given a seed begin anew from it, whatever the tick brought them."""
        self.step()
        given = self._orders.seeds >= 0
        if given.any():
            frames, info = self._env.reset(seed=self._orders.seeds.tolist(), options={"reset_mask": given})
            if not self._writes_out:
                self._write_begun(given, frames, info)

    def close(self) -> None:
        self._env.close()

    def _write(self, frames: Any, rewards: Any, terminated: Any, truncated: Any, info: dict[str, Any]) -> None:
        out, lives_before = self._out, self._lives.copy()
        self._write_frames(frames)
        self._check("paid a reward", rewards)
        self._take_lives(info)
        out.rewards[:] = out.raw_rewards[:] = rewards
        if "raw_reward" in info:
            self._check("told a raw reward", info["raw_reward"])
            np.copyto(out.raw_rewards, info["raw_reward"], casting="unsafe", where=info.get("_raw_reward", True))
        out.terminated[:] = terminated
        out.truncated[:] = truncated
        out.lives[:] = self._lives
        out.is_reset[:] = self._over
        out.life_lost[:] = (self._lives < lives_before) & ~self._over & ~out.terminated
        np.logical_or(terminated, truncated, out=self._over)

    def _write_begun(self, begun: npt.NDArray[np.bool_], frames: Any, info: dict[str, Any]) -> None:
        out = self._out
        self._write_frames(frames)
        self._lives[begun] = 0
        self._take_lives(info)
        out.rewards[begun] = out.raw_rewards[begun] = 0
        out.lives[begun] = self._lives[begun]
        out.is_reset[begun] = True
        for flags in (out.terminated, out.truncated, out.life_lost, self._over):
            flags[begun] = False

    def _write_frames(self, frames: Any) -> None:
        self._check("observed", frames)
        np.copyto(self._out.frames, frames.reshape(self._out.frames.shape), casting="same_kind")

    def _take_lives(self, info: dict[str, Any]) -> None:
        if "lives" in info:
            # gymnasium marks the envs that told their lives at this tick
            np.copyto(self._lives, info["lives"], casting="unsafe", where=info.get("_lives", True))

    def _check(self, did: str, values: Any) -> None:
        """Raise for what no float32 holds: once in the replay, it would come back for as long as that remembers."""
        if values.dtype.kind != "f":
            return
        sound = np.abs(values) <= np.finfo(np.float32).max  # false for NaN
        if not sound.all():
            env = int(np.argmin(sound.reshape(len(values), -1).all(axis=1)))
            raise FloatingPointError(f"env {self._first_env + env} {did} that is NaN or infinite: {values[env]}")


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
    """Serve the envs `mine` of a pool of `num_envs`, until the pipes close.

    `core` is where it runs if the system lets it, None: anywhere. `stacks` takes the process's stack when SIGUSR1 asks
    for it, which works while an env hangs. SIGINT, SIGTERM and SIGHUP are blocked from birth: they reach every process
    of a terminal or a job, but the trainer alone decides when to end.
    """
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    if core is not None:
        with contextlib.suppress(OSError):  # a sandbox may forbid it, and the core may be gone: then run anywhere
            os.sched_setaffinity(0, {core})
    end_with_parent()
    # bare reads and writes below: with few envs a tick is short, and a process wakes with cold caches
    envs: Envs | None = None
    command, trouble = START, ""
    while command and not trouble:  # reading nothing means that the pool closed the pipes
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
        except BaseException:  # an env may even call sys.exit: whatever it was, the trainer must hear of it
            trouble = traceback.format_exc()
        try:
            os.write(answers.fileno(), FAILED if trouble else DONE)
            if trouble:
                answers.send_bytes(trouble.encode(errors="backslashreplace")[-MOST_TROUBLE:])
            else:
                command = os.read(commands.fileno(), 1)
        except OSError:
            break  # the pool closed the pipes in mid-step
    if envs is not None:
        envs.close()
