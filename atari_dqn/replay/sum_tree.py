"""A sum tree: flows in, priorities of leaves; flows out, leaves drawn in proportion to them, their sum and minimum.

Every level is a flat float64 tensor whose nodes reduce up to 64 children each. A write recomputes the nodes above
it from their children, so rounding errors never accumulate; a find walks down from the root, level by level.
All shapes are fixed by the sizes of the arguments and nothing is read back from a GPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

FANOUT = 64
"""Children per node: 2^18 leaves need three levels, and a level's gather of a batch still fits the L2 cache."""


class SumTree:
    """Priorities of `num_leaves` leaves (a power of two), all 0 at first.

    float64 throughout: with float32 sums the frequencies are visibly off at 2^20 leaves.
    A leaf of priority 0 is never drawn and does not count for `smallest`.
    """

    def __init__(self, num_leaves: int, device: torch.device | str = "cpu") -> None:
        """Raises ValueError when `num_leaves` is no power of two."""
        if num_leaves < 1 or num_leaves & (num_leaves - 1):
            below = 2 ** max(0, num_leaves.bit_length() - 1)
            raise ValueError(f"a sum tree has a power of two of leaves, not {num_leaves}: take {below} or {2 * below}")
        self.leaves = torch.zeros(num_leaves, dtype=torch.float64, device=device)
        """[num_leaves] float64; read only, as all below: only `write` and `load` keep the levels consistent"""
        self.sums = [self.leaves]
        """from the leaves to the root: sums[i + 1] holds the sum of each run of children of sums[i]"""
        self.minima: list[Tensor] = []
        """from the leaves' parents to the root: the least positive leaf below each node, inf when there is none"""
        self._fans: list[int] = []
        size = num_leaves
        while size > 1 or not self._fans:
            self._fans.append(min(FANOUT, size))
            size //= self._fans[-1]
            self.sums.append(torch.zeros(size, dtype=torch.float64, device=device))
            self.minima.append(torch.full((size,), math.inf, dtype=torch.float64, device=device))
        self.total = self.sums[-1][0]
        """[] float64, sum of all leaves"""
        self.smallest = self.minima[-1][0]
        """[] float64, the least positive leaf; inf when there is none"""

    @property
    def nbytes(self) -> int:
        return sum(level.nbytes for level in (*self.sums, *self.minima))

    def write(self, leaves: Tensor, values: Tensor, keep: Tensor | None = None) -> None:
        """Set `leaves` (int64 [M]) to `values` (float64 [M], finite, >= 0); of duplicates the larger value wins.

        Where `keep` (bool [M]) is false nothing is written: it lets a caller drop entries without changing a shape.
        Raises ValueError, before anything is changed, when a value is negative, infinite or NaN (on a GPU, where
        looking would stall it, the device asserts instead).
        """
        low, high = torch.aminmax(values)
        sound = (low >= 0) & (high < math.inf)  # false for NaN
        if values.device.type == "cuda":
            torch._assert_async(sound, "a priority is negative, infinite or NaN")
        elif not sound:
            raise ValueError(f"priorities must be finite and not negative; these go from {low:g} to {high:g}")
        if keep is None:
            self.leaves.scatter_reduce_(0, leaves, values, "amax", include_self=False)
        else:
            before = self.leaves.index_select(0, leaves)
            # -1 loses against every value that is kept; where none is, the old value returns.
            offered = torch.where(keep, values, -1.0)
            self.leaves.scatter_reduce_(0, leaves, offered, "amax", include_self=False)
            after = self.leaves.index_select(0, leaves)
            self.leaves.index_copy_(0, leaves, torch.where(after < 0, before, after))
        nodes = torch.div(leaves, self._fans[0], rounding_mode="floor")
        children = self.leaves.view(-1, self._fans[0]).index_select(0, nodes)
        self.sums[1].index_copy_(0, nodes, children.sum(1))
        self.minima[0].index_copy_(0, nodes, _least_positive(children))
        self._recompute(from_level=1)

    def find(self, mass: Tensor) -> Tensor:
        """The leaves under `mass` (float64 [B], in [0, total)): int64 [B].

        Leaf i is drawn where the sum of the leaves before it is <= mass < that sum + leaf i. Whatever the rounding,
        and for masses out of range too, a leaf of priority 0 is never returned while there is a positive one.
        """
        node = torch.zeros_like(mass, dtype=torch.int64)
        for level in range(len(self._fans) - 1, -1, -1):
            fan = self._fans[level]
            children = self.sums[level].view(-1, fan).index_select(0, node)
            reach = children.cumsum(1)
            # A parallel cumsum may round equal prefixes differently, so a child of 0 could seem to hold some mass.
            held = torch.where(children > 0, reach, -math.inf)
            mass = torch.minimum(mass, torch.nextafter(held.amax(1), torch.zeros_like(mass)))
            child = (held > mass.unsqueeze(1)).view(torch.uint8).argmax(1, keepdim=True)
            mass = mass - (reach - children).gather(1, child).squeeze(1)
            node = node * fan + child.squeeze(1)
        return node

    def load(self, leaves: Tensor) -> None:
        """Take over all leaves (float64 [num_leaves]) and recompute what lies above them."""
        if leaves.shape != self.leaves.shape:
            raise ValueError(f"the tree has {len(self.leaves)} leaves; the stored one has {len(leaves)}")
        self.leaves.copy_(leaves)
        self._recompute(from_level=0)

    def _recompute(self, from_level: int) -> None:
        for level in range(from_level, len(self._fans)):
            fan = self._fans[level]
            children = self.sums[level].view(-1, fan)
            torch.sum(children, 1, out=self.sums[level + 1])
            if level == 0:
                self.minima[0].copy_(_least_positive(children))
            else:
                torch.amin(self.minima[level - 1].view(-1, fan), 1, out=self.minima[level])


def _least_positive(children: Tensor) -> Tensor:
    return torch.where(children > 0, children, math.inf).amin(1)
