"""Asynchronous copies from host memory to the replay's device.

A copy to a GPU is asynchronous only from page-locked ("pinned") memory, which must not change before it has been read.
On a CPU an array passes through without a copy.
"""

import torch
from torch import Tensor


class Staging:
    """Pinned memory for arrays of up to `rows` rows of `shape` and `dtype` if `device` is a GPU."""

    def __init__(self, rows: int, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        self.device = device
        self._pinned = torch.empty((rows, *shape), dtype=dtype, pin_memory=True) if device.type == "cuda" else None
        self._read = torch.cuda.Event() if device.type == "cuda" else None

    def upload(self, values: Tensor, target: Tensor | None = None) -> Tensor:
        """Copy to the device, asynchronously on a GPU. Waits only until the previous upload has been read.

        `values`, [M, *shape] in host memory or on the device, may be changed as soon as this returns. Returns `target`,
        the tensor on the device to write to; a new one by default.
        """
        if self._pinned is not None and self._read is not None and values.device.type == "cpu":
            self._read.synchronize()
            values = self._pinned[: len(values)].copy_(values)
        if target is None:
            target = values.to(self.device, non_blocking=True)
        else:
            target.copy_(values, non_blocking=True)
        if self._read is not None:
            self._read.record()
        return target
