"""Which library does the replay's small index arithmetic: a device flows in, numpy or torch flows out.

The arithmetic is written once, in what the two have in common, on arrays that share the tensors' memory. On a CPU
numpy computes it: for a batch of 32, a call of torch takes several times as long as the work it calls for. On a GPU
torch does. (Tests let torch do it on a CPU as well, in the GPU's place.)
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any
"""A numpy array or a tensor, as the library in use has it"""


def library(device: torch.device) -> ModuleType:
    return np if device.type == "cpu" else torch


def native(xp: ModuleType, tensor: Tensor) -> Array:
    """`tensor` as an array of `xp`, in the same memory."""
    return tensor.numpy() if xp is np else tensor


def tensor(array: Array) -> Tensor:
    """The inverse of `native`."""
    return array if isinstance(array, Tensor) else torch.from_numpy(array)


def arange(xp: ModuleType, start: int, stop: int, device: torch.device) -> Array:
    """int64 [stop - start]"""
    return np.arange(start, stop) if xp is np else torch.arange(start, stop, device=device)


def running_maximum(xp: ModuleType, values: Array) -> Array:
    """[N], the largest so far."""
    return np.maximum.accumulate(values) if xp is np else torch.cummax(values, 0).values
