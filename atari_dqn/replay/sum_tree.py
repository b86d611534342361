"""Sum tree for proportional prioritized sampling.

Every level is a flat float64 tensor. A node is the sum of many children; the root has by far the most, since one
bisection finds a draw among them. A write recomputes the nodes above it from their children, so rounding errors never
accumulate; a search walks down from the root, level by level. All shapes are fixed by the sizes of the arguments, and
nothing is read back from a GPU.
"""

import math

import torch
from torch import Tensor

from atari_dqn.replay.arrays import Array, Library, arange, as_array, as_tensor, library, put_largest, running_maximum

FANOUT = {"cpu": 64, "cuda": 1024}
"""Children per node. On a CPU a level's gather of a batch fits the L2 cache. On a GPU, where a level costs a dozen
launches and a row of 1,024 next to nothing, 2^22 leaves need only one level of nodes below the root."""
ROOT_FANOUT = 4096
"""Maximum number of children of the root: on a CPU 2^18 leaves need one level of nodes between, 2^24 two."""


class InvalidPriorityError(ValueError, FloatingPointError):
    """A priority is negative, infinite or NaN: a bad argument, or a training that has diverged."""


class SumTree:
    """Priorities of `num_leaves` leaves (a power of two), initially 0.

    Everything is float64: with float32 sums the sampling frequencies are visibly off at 2^20 leaves.
    A leaf of priority 0 is never drawn.
    """

    def __init__(self, num_leaves: int, device: torch.device | str = "cpu", xp: Library | None = None) -> None:
        """Build an empty tree on `device`. `xp` is the library that computes, as in the `FrameRing`.

        Raises `ValueError` unless `num_leaves` is a power of two.
        """
        if num_leaves < 1 or num_leaves & (num_leaves - 1):
            below = 2 ** max(0, num_leaves.bit_length() - 1)
            raise ValueError(f"num_leaves must be a power of two, not {num_leaves}; try {below} or {2 * below}")
        self.device = torch.device(device)
        self.xp = xp or library(self.device)
        self.leaves = torch.zeros(num_leaves, dtype=torch.float64, device=device)
        """Priorities, float64 [num_leaves]. Read only, like all tensors below: only `write` and `load` keep the levels
        consistent."""
        self.sums = [self.leaves]
        """Levels from the leaves to the root: sums[i + 1] holds the sum of each run of children in sums[i]."""
        self._fans: list[int] = []
        fanout, size = FANOUT["cpu" if torch.device(device).type == "cpu" else "cuda"], num_leaves
        while size > 1 or not self._fans:
            self._fans.append(size if size <= ROOT_FANOUT else fanout)
            size //= self._fans[-1]
            self.sums.append(torch.zeros(size, dtype=torch.float64, device=device))
        self.total = self.sums[-1][0]
        """Sum of all leaves, float64 []."""
        # Views of the same memory as arrays of `xp`.
        self._leaves, *self._nodes = (as_array(self.xp, level) for level in self.sums)
        self._families = [
            as_array(self.xp, level).reshape(-1, fan) for level, fan in zip(self.sums, self._fans, strict=False)
        ]

    @property
    def nbytes(self) -> int:
        """Memory of all levels."""
        return sum(level.nbytes for level in self.sums)

    def write(self, leaves: Tensor, values: Tensor, keep: Tensor | None = None) -> None:
        """Set the priorities of some leaves.

        Args:
            leaves: Indices, int64 [M]. If one occurs more than once, its largest value wins.
            values: Priorities, float64 [M], finite and not negative.
            keep: Optional bool [M]; entries where it is False are not written. It lets a caller drop entries without
                changing a shape.

        Raises:
            InvalidPriorityError: A value is negative, infinite or NaN; the tree is unchanged. (On a GPU, where reading
                the values would stall it, the device asserts instead.)
        """
        xp, at, new = self.xp, as_array(self.xp, leaves), as_array(self.xp, values)
        low, high = xp.amin(new), xp.amax(new)
        valid = (low >= 0) & (high < math.inf)  # False for NaN
        if self.device.type != "cpu":
            torch._assert_async(as_tensor(valid), "a priority is negative, infinite or NaN")
        elif not valid:
            raise InvalidPriorityError(f"priorities must be finite and not negative, not from {low:g} to {high:g}")
        if keep is None:
            put_largest(xp, self._leaves, at, new)
        else:
            before = self._leaves[at]
            # -1 loses against every value that is kept; a leaf left at -1 gets its old value back.
            put_largest(xp, self._leaves, at, xp.where(as_array(xp, keep), new, -1.0))
            after = self._leaves[at]
            self._leaves[at] = xp.where(after < 0, before, after)
        parents = at // self._fans[0]
        self._nodes[0][parents] = xp.sum(self._families[0][parents], 1)
        self._recompute(from_level=1)

    def find(self, mass: Tensor) -> Tensor:
        """Find the leaves under given points of the cumulative sum of all priorities.

        Whatever the rounding, and even for masses out of range, a leaf of priority 0 is never returned while there is
        a positive one.

        Args:
            mass: float64 [B], in [0, total).

        Returns:
            int64 [B]: leaf i where the sum of the leaves before it is <= mass < that sum + leaf i.
        """
        xp, left = self.xp, as_array(self.xp, mass)
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
        return as_tensor(node)

    def load(self, leaves: Tensor) -> None:
        """Set all leaves (float64 [num_leaves]) and recompute the levels above them."""
        if leaves.shape != self.leaves.shape:
            raise ValueError(f"cannot load {len(leaves)} leaves into a tree of {len(self.leaves)}")
        self.leaves.copy_(leaves)
        self._recompute(from_level=0)

    def _recompute(self, from_level: int) -> None:
        for level in range(from_level, len(self._fans)):
            self.xp.sum(self._families[level], 1, out=self._nodes[level])


def _below(xp: Library, mass: Array) -> Array:
    """The next float64 towards 0."""
    return xp.nextafter(mass, xp.zeros_like(mass))
