"""What a tick of the envs takes and brings, and where it lies: one block of memory that all processes of a pool share,
laid out field by field, so that each worker writes its slice and the pool reads whole arrays without a copy.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from typing import Any

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.step import StepResult

ALIGNMENT = 64
Field = tuple[np.dtype[Any], tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Orders:
    """What the pool tells N envs, in shared memory."""

    actions: npt.NDArray[np.int64]
    """[N]"""
    seeds: npt.NDArray[np.int64]
    """[N] from which envs begin anew, when they are told to; negative: this one is not meant"""

    def of(self, envs: slice) -> Orders:
        """The part of some envs, still views."""
        return Orders(self.actions[envs], self.seeds[envs])


def block_bytes(num_envs: int, frame_shape: tuple[int, ...], frame_dtype: np.dtype[Any]) -> int:
    """Bytes that `map_block` lays out."""
    return sum(_padded_bytes(field) for field in _fields(num_envs, frame_shape, frame_dtype))


def room_fault(needed: int) -> str:
    """Why shared memory has no room for `needed` bytes, which would end in a bus error; empty when it has."""
    found = []
    for find in (lambda: "/dev/shm", tempfile.gettempdir):  # where multiprocessing looks, in this order
        try:
            status = os.statvfs(place := find())
        except OSError:
            continue
        free = status.f_bavail * status.f_frsize
        if free >= needed:
            return ""
        found.append(f"{place} has {free / 1e6:.2f} MB")
    return (
        f"the workers need {needed / 1e6:.2f} MB of shared memory, and {' and '.join(found) or 'nothing'} free: enlarge"
        " one, let TMPDIR name a roomier directory, or lower --num-workers or --envs-per-worker"
    )


def map_block(
    block: Any, num_envs: int, frame_shape: tuple[int, ...], frame_dtype: np.dtype[Any]
) -> tuple[StepResult, Orders]:
    """Lay the results and the orders of a pool over a writable buffer of `block_bytes`."""
    arrays, offset = [], 0
    for field in _fields(num_envs, frame_shape, frame_dtype):
        dtype, shape = field
        arrays.append(np.frombuffer(block, dtype, int(np.prod(shape)), offset).reshape(shape))
        offset += _padded_bytes(field)
    return StepResult(*arrays[:-2]), Orders(*arrays[-2:])


def _fields(num_envs: int, frame_shape: tuple[int, ...], frame_dtype: np.dtype[Any]) -> list[Field]:
    """The fields of `StepResult` in order, then those of `Orders`."""
    rest = (np.float64, np.float64, np.bool_, np.bool_, np.int32, np.bool_, np.bool_, np.int64, np.int64)
    return [(frame_dtype, (num_envs, *frame_shape)), *((np.dtype(kind), (num_envs,)) for kind in rest)]


def _padded_bytes(field: Field) -> int:
    dtype, shape = field
    return -(-int(np.prod(shape)) * dtype.itemsize // ALIGNMENT) * ALIGNMENT
