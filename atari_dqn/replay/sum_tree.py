"""A sum tree: flows in, priorities of leaves; flows out, leaves drawn in proportion to them, their sum and minimum.

Every level is a flat float64 tensor whose nodes reduce many children each, the root by far the most, since it takes
one bisection to find a draw among them. A write recomputes the nodes above it from their children, so rounding errors
never accumulate; a find walks down from the root, level by level.
All shapes are fixed by the sizes of the arguments and nothing is read back from a GPU.
"""

from __future__ import annotations

import math
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from atari_dqn.replay.arrays import Array, arange, library, native, running_maximum, tensor

FANOUT = {"cpu": 64, "cuda": 1024}
"""Children per node. On a CPU a level's gather of a batch fits the L2 cache; on a GPU, where a level costs a dozen
launches and a row of 1,024 next to nothing, 2^22 leaves need but one level of nodes below the root."""
ROOT_FANOUT = 4096
"""Children of the root at most: on a CPU 2^18 leaves need one level of nodes between, 2^24 two."""


class UnsoundPriorityError(ValueError, FloatingPointError):
    """A priority is negative, infinite or NaN: a bad argument, or a training whose numbers have got out of hand."""


class SumTree:
    """Priorities of `num_leaves` leaves (a power of two), all 0 at first.

    float64 throughout: with float32 sums the frequencies are visibly off at 2^20 leaves.
    A leaf of priority 0 is never drawn and does not count for `smallest`.
    """

    def __init__(self, num_leaves: int, device: torch.device | str = "cpu", xp: ModuleType | None = None) -> None:
        """`xp` computes, numpy or torch; by default as `arrays.library` has it.

        Raises ValueError when `num_leaves` is no power of two.
        """
        if num_leaves < 1 or num_leaves & (num_leaves - 1):
            below = 2 ** max(0, num_leaves.bit_length() - 1)
            raise ValueError(f"a sum tree has a power of two of leaves, not {num_leaves}: take {below} or {2 * below}")
        self.device = torch.device(device)
        self.xp = xp or library(self.device)
        self.leaves = torch.zeros(num_leaves, dtype=torch.float64, device=device)
        """[num_leaves] float64; read only, as all below: only `write` and `load` keep the levels consistent"""
        self.sums = [self.leaves]
        """from the leaves to the root: sums[i + 1] holds the sum of each run of children of sums[i]"""
        self.minima: list[Tensor] = []
        """from the leaves' parents to the root: the least positive leaf below each node, inf when there is none"""
        self._fans: list[int] = []
        fanout, size = FANOUT["cpu" if torch.device(device).type == "cpu" else "cuda"], num_leaves
        while size > 1 or not self._fans:
            self._fans.append(size if size <= ROOT_FANOUT else fanout)
            size //= self._fans[-1]
            self.sums.append(torch.zeros(size, dtype=torch.float64, device=device))
            self.minima.append(torch.full((size,), math.inf, dtype=torch.float64, device=device))
        self.total = self.sums[-1][0]
        """[] float64, sum of all leaves"""
        self.smallest = self.minima[-1][0]
        """[] float64, the least positive leaf; inf when there is none"""
        # The same memory, as what computes on it.
        self._leaves, *self._nodes = (native(self.xp, level) for level in self.sums)
        self._families = [
            native(self.xp, level).reshape(-1, fan) for level, fan in zip(self.sums, self._fans, strict=False)
        ]
        self._least = [native(self.xp, level) for level in self.minima]

    @property
    def nbytes(self) -> int:
        return sum(level.nbytes for level in (*self.sums, *self.minima))

    def write(self, leaves: Tensor, values: Tensor, keep: Tensor | None = None) -> None:
        """Set `leaves` (int64 [M]) to `values` (float64 [M], finite, >= 0); of duplicates the larger value wins.

        Where `keep` (bool [M]) is false nothing is written: it lets a caller drop entries without changing a shape.
        Raises UnsoundPriorityError, before anything is changed, when a value is negative, infinite or NaN (on a GPU,
        where looking would stall it, the device asserts instead).
        """
        xp, at, new = self.xp, native(self.xp, leaves), native(self.xp, values)
        low, high = xp.amin(new), xp.amax(new)
        sound = (low >= 0) & (high < math.inf)  # false for NaN
        if self.device.type != "cpu":
            torch._assert_async(sound, "a priority is negative, infinite or NaN")
        elif not sound:
            raise UnsoundPriorityError(f"priorities must be finite and not negative; these go from {low:g} to {high:g}")
        if keep is None:
            self._put_largest(at, new)
        else:
            before = self._leaves[at]
            # -1 loses against every value that is kept; where none is, the old value returns.
            self._put_largest(at, xp.where(native(xp, keep), new, -1.0))
            after = self._leaves[at]
            self._leaves[at] = xp.where(after < 0, before, after)
        parents = at // self._fans[0]
        children = self._families[0][parents]
        self._nodes[0][parents] = xp.sum(children, 1)
        self._least[0][parents] = self._least_positive(children)
        self._recompute(from_level=1)

    def _put_largest(self, at: Array, new: Array) -> None:
        if self.xp is np:
            self._leaves[at] = -math.inf
            np.maximum.at(self._leaves, at, new)
        else:
            self._leaves.scatter_reduce_(0, at, new, "amax", include_self=False)

    def find(self, mass: Tensor) -> Tensor:
        """The leaves under `mass` (float64 [B], in [0, total)): int64 [B].

        Leaf i is drawn where the sum of the leaves before it is <= mass < that sum + leaf i. Whatever the rounding,
        and for masses out of range too, a leaf of priority 0 is never returned while there is a positive one.
        """
        xp, left = self.xp, native(self.xp, mass)
        each = arange(xp, 0, len(left), self.device)
        children = self._families[-1][0]
        reach = xp.cumsum(children, 0)
        # A parallel cumsum may round equal prefixes differently, so a child of 0 could seem to hold some mass.
        held = running_maximum(xp, xp.where(children > 0, reach, -math.inf))
        left = xp.minimum(left, _below(xp, held[-1]))
        node = xp.searchsorted(held, left, side="right")
        left = left - (reach - children)[node]
        for family, fan in zip(reversed(self._families[:-1]), reversed(self._fans[:-1]), strict=True):
            children = family[node]
            reach = xp.cumsum(children, 1)
            held = xp.where(children > 0, reach, -math.inf)
            left = xp.minimum(left, _below(xp, xp.amax(held, 1)))
            child = xp.argmax((held > left[:, None]).view(xp.uint8), 1)
            left = left - (reach - children)[each, child]
            node = node * fan + child
        return tensor(node)

    def load(self, leaves: Tensor) -> None:
        """Take over all leaves (float64 [num_leaves]) and recompute what lies above them."""
        if leaves.shape != self.leaves.shape:
            raise ValueError(f"the tree has {len(self.leaves)} leaves; the stored one has {len(leaves)}")
        self.leaves.copy_(leaves)
        self._recompute(from_level=0)

    def _recompute(self, from_level: int) -> None:
        for level in range(from_level, len(self._fans)):
            self.xp.sum(self._families[level], 1, out=self._nodes[level])
            if level == 0:
                self._least[0][:] = self._least_positive(self._families[0])
            else:
                self.xp.amin(self._least[level - 1].reshape(-1, self._fans[level]), 1, out=self._least[level])

    def _least_positive(self, children: Array) -> Array:
        return self.xp.amin(self.xp.where(children > 0, children, math.inf), 1)


def _below(xp: ModuleType, mass: Array) -> Array:
    """The next float64 towards 0."""
    return xp.nextafter(mass, xp.zeros_like(mass))
