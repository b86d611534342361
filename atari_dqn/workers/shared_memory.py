"""Layout of the block of memory that a pool shares with its workers.

The pool writes actions and seeds, the workers frames, rewards and flags. Each array of all N environments is
contiguous, so a worker writes its slice of it and the pool reads it whole, without a copy.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.step import StepResult

ALIGNMENT = 64
"""Bytes to which each array is aligned: a cache line."""


@dataclasses.dataclass(frozen=True)
class Orders:
    """What the pool sends to N environments."""

    actions: npt.NDArray[np.int64]
    """Actions to take, [N]."""
    seeds: npt.NDArray[np.int64]
    """Seeds from which to start an episode after the action, [N]; negative: continue instead."""

    def of(self, envs: slice) -> Orders:
        """The part of some environments, as views."""
        return Orders(self.actions[envs], self.seeds[envs])


def block_bytes(num_envs: int, frame_shape: tuple[int, ...], frame_dtype: np.dtype[Any]) -> int:
    """Size of the block that `map_block` lays out, in bytes."""
    return sum(_padded_bytes(*array) for array in _layout(num_envs, frame_shape, frame_dtype))


def map_block(
    block: Any, num_envs: int, frame_shape: tuple[int, ...], frame_dtype: np.dtype[Any]
) -> tuple[StepResult, Orders]:
    """Views of the results and orders of a pool in `block`, a writable buffer of `block_bytes`."""
    arrays, offset = [], 0
    for dtype, shape in _layout(num_envs, frame_shape, frame_dtype):
        arrays.append(np.frombuffer(block, dtype, int(np.prod(shape)), offset).reshape(shape))
        offset += _padded_bytes(dtype, shape)
    return StepResult(*arrays[:-2]), Orders(*arrays[-2:])


def room_fault(needed: int) -> str:
    """Error message if shared memory has less than `needed` bytes free, which would end in a bus error; else empty."""
    found = []
    for first in ("/dev/shm", None):  # where multiprocessing looks for memory to share
        with contextlib.suppress(OSError):  # there is no such directory, or none that is writable
            place = first or tempfile.gettempdir()
            free = shutil.disk_usage(place).free
            if free >= needed:
                return ""
            found.append(f"{place} has {free / 1e6:.2f} MB")
    return (
        f"the workers need {needed / 1e6:.2f} MB of shared memory, and {' and '.join(found) or 'nothing'} free: enlarge"
        " one, set TMPDIR to a directory with more space, or lower --num-workers or --envs-per-worker"
    )


def _layout(
    num_envs: int, frame_shape: tuple[int, ...], frame_dtype: np.dtype[Any]
) -> list[tuple[np.dtype[Any], tuple[int, ...]]]:
    """Dtype and shape of each array: the fields of `StepResult`, then those of `Orders`."""
    return [*StepResult.layout(num_envs, frame_shape, frame_dtype), *[(np.dtype(np.int64), (num_envs,))] * 2]


def _padded_bytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    return -(-int(np.prod(shape)) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
