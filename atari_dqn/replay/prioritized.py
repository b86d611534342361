"""Proportional prioritized replay (Schaul, Quan, Antonoglou & Silver, "Prioritized Experience Replay", 2016)."""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from atari_dqn.replay.arrays import as_array, as_tensor
from atari_dqn.replay.base import Replay

PRIORITY_EPSILON = 0.01
"""Added to the absolute error before the exponent, so that every transition can be drawn. The paper gives no number;
this one is its authors' (chainer/chainerrl#278)."""


class PrioritizedReplay(Replay):
    """Draws a transition with probability proportional to (|td_error| + 0.01)^alpha."""

    def __init__(self, capacity: int, *args: Any, alpha: float, **kwargs: Any) -> None:
        """Allocate an empty replay, as `Replay` does; with an `alpha` of 0 all transitions are equally likely.

        Raises `ValueError` unless `capacity` is a power of two.
        """
        if capacity < 1 or capacity & (capacity - 1):
            below = 2 ** max(0, capacity.bit_length() - 1)
            raise ValueError(f"capacity must be a power of two, not {capacity}; try {below} or {2 * below}")
        super().__init__(capacity, *args, **kwargs)
        self.alpha = alpha

    def update_priorities(self, ids: ArrayLike | Tensor, td_errors: ArrayLike | Tensor) -> None:
        """Set the priorities of transitions from their TD errors.

        Args:
            ids: Ids from a batch, int64 [B]. Those overwritten or no longer drawable are ignored; of duplicates, the
                one with the largest error wins.
            td_errors: TD errors of any sign, float [B].

        Raises:
            ValueError: An error is NaN or infinite; nothing was changed. (On a GPU the device asserts instead.)
        """
        ring, tree, xp = self.ring, self.tree, self.tree.xp
        errors = td_errors.detach() if isinstance(td_errors, Tensor) else np.asarray(td_errors)
        magnitudes = as_array(xp, torch.as_tensor(errors, dtype=torch.float64, device=ring.device).abs())
        given = as_array(xp, torch.as_tensor(ids if isinstance(ids, Tensor) else np.asarray(ids), device=ring.device))
        size, head = ring.rows * ring.num_envs, as_array(xp, ring.head)
        slots = given % size
        keep = (given > head - size) & (given <= head) & (as_array(xp, tree.leaves)[slots] > 0)
        priorities = (magnitudes + PRIORITY_EPSILON) ** self.alpha
        tree.write(as_tensor(slots), as_tensor(priorities), keep=as_tensor(keep))
        largest = as_array(xp, self._largest)
        largest[...] = xp.maximum(largest, xp.amax(xp.where(keep, priorities, 0.0)))
