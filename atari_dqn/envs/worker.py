"""A worker process: one-byte commands flow in by a pipe and actions by shared memory; frames, rewards and flags flow
out by shared memory, and by the pipe an empty message (done) or the traceback of what went wrong.

It owns the envs of one slice of the pool and never outlives its parent. It imports neither torch nor labml.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import os
import signal
import threading
import traceback
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.make import EnvSpec, Protocol, make_vector_env

RESET, STEP = b"r", b"s"
ALIGNMENT = 64


@dataclasses.dataclass(frozen=True)
class StepResult:
    """What one tick of N envs brought. The arrays are views of shared memory: valid until the next command."""

    frames: npt.NDArray[Any]
    """[N, *frame_shape] of the spec's dtype: the newest frame; at an episode's end its final one."""
    rewards: npt.NDArray[np.float64]
    """[N] raw"""
    terminated: npt.NDArray[np.bool_]
    """[N] the game is over"""
    truncated: npt.NDArray[np.bool_]
    """[N] the episode was cut by a time limit"""
    lives: npt.NDArray[np.int32]
    """[N] lives left; 0 where the env has none"""
    life_lost: npt.NDArray[np.bool_]
    """[N] lives fell, and the game goes on"""
    is_reset: npt.NDArray[np.bool_]
    """[N] this tick began an episode: its action was ignored, its reward is 0, and it is no env step"""

    def of(self, envs: slice) -> StepResult:
        """The part of some envs, still views."""
        return StepResult(*(getattr(self, field.name)[envs] for field in dataclasses.fields(self)))


def _fields(spec: EnvSpec, num_envs: int) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
    """The arrays of a block: those of `StepResult` in order, then the actions."""
    frames = (spec.frame_dtype, (num_envs, *spec.frame_shape))
    rest = (np.float64, np.bool_, np.bool_, np.int32, np.bool_, np.bool_, np.int64)
    return [frames, *((np.dtype(kind), (num_envs,)) for kind in rest)]


def _padded_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return -(-int(np.prod(shape)) * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def block_bytes(spec: EnvSpec, num_envs: int) -> int:
    """Bytes of shared memory that a pool of `num_envs` needs."""
    return sum(_padded_bytes(*field) for field in _fields(spec, num_envs))


def map_block(block: Any, spec: EnvSpec, num_envs: int) -> tuple[StepResult, npt.NDArray[np.int64]]:
    """Lay a pool's results and actions ([N] int64) over a buffer of `block_bytes`."""
    arrays, offset = [], 0
    for dtype, shape in _fields(spec, num_envs):
        arrays.append(np.frombuffer(block, dtype, int(np.prod(shape)), offset).reshape(shape))
        offset += _padded_bytes(dtype, shape)
    return StepResult(*arrays[:-1]), arrays[-1]


class Envs:
    """The envs of one worker; every command leaves its outcome in `out`."""

    def __init__(
        self, spec: EnvSpec, protocol: Protocol, seeds: list[int], actions: npt.NDArray[np.int64], out: StepResult
    ) -> None:
        self._env = make_vector_env(spec, protocol, len(seeds))
        self._seeds: Any = np.array(seeds) if spec.is_atari else seeds  # ALE takes an array, gymnasium a list
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
        self._write(*self._env.step(self._actions))

    def close(self) -> None:
        self._env.close()

    def _write(self, frames: Any, rewards: Any, terminated: Any, truncated: Any, info: dict[str, Any]) -> None:
        out, lives_before = self._out, self._lives.copy()
        if "lives" in info:
            # gymnasium marks the envs that told their lives at this tick; ALE's envs always do
            np.copyto(self._lives, info["lives"], casting="unsafe", where=info.get("_lives", True))
        np.copyto(out.frames, frames.reshape(out.frames.shape), casting="same_kind")
        out.rewards[:] = rewards
        out.terminated[:] = terminated
        out.truncated[:] = truncated
        out.lives[:] = self._lives
        out.is_reset[:] = self._over
        out.life_lost[:] = (self._lives < lives_before) & ~self._over & ~out.terminated
        np.logical_or(terminated, truncated, out=self._over)


def main(
    pipe: Connection,
    stacks: Connection,
    block: Any,
    spec: EnvSpec,
    protocol: Protocol,
    num_envs: int,
    first_env: int,
    seeds: list[int],
) -> None:
    """Serve the envs `first_env`, `first_env + 1`, ... of a pool of `num_envs`, one per seed, until the pipe closes.

    `stacks` takes the process's stack when SIGUSR1 asks for it, which works while an env hangs.
    """
    # Ctrl-C reaches every process of the terminal, but only the trainer decides when to end
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR1, file=stacks, all_threads=True)
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    envs: Envs | None = None
    mine = slice(first_env, first_env + len(seeds))
    command, answer = b"", b""
    while not answer:
        try:
            if envs is None:
                out, actions = map_block(block, spec, num_envs)
                envs = Envs(spec, protocol, seeds, actions[mine], out.of(mine))
            elif command == RESET:
                envs.reset()
            else:
                envs.step()
        except BaseException:  # an env may even call sys.exit: whatever it was, the trainer must hear of it
            answer = traceback.format_exc().encode()
        try:
            pipe.send_bytes(answer)
            command = pipe.recv_bytes()
        except (EOFError, OSError):
            break  # the pool is closed
    if envs is not None:
        envs.close()


def _exit_with_parent() -> None:
    """A pipe tells an idle worker that its parent is gone; a busy or hung one learns it here."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
