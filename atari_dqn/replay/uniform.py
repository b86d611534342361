"""Replays without priorities: uniform, and the newest transitions only.

They use the same ring and tree as the prioritized replay with every priority 1, so that all importance weights are 1.
"""

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from atari_dqn.replay.base import NO_ID, Replay


class UniformReplay(Replay):
    """Draws all transitions with equal probability. Any capacity."""

    def update_priorities(self, ids: ArrayLike | Tensor, td_errors: ArrayLike | Tensor) -> None:
        """Do nothing: all priorities stay 1."""


class NewestReplay(UniformReplay):
    """Returns the newest transitions instead of drawing. Any capacity; little more than a batch is enough."""

    def _draw(self, batch_size: int) -> Tensor:
        """Slots of the newest transitions, oldest first; repeated if fewer are complete, int64 [batch_size]."""
        ring, leaves = self.ring, self.tree.leaves
        size = ring.rows * ring.num_envs
        slots = torch.arange(len(leaves), device=ring.device)
        ids = ring.head - (ring.head - slots) % size
        order = ids.masked_fill(leaves == 0, NO_ID).argsort()
        # Counted on the device, since a CUDA graph would freeze a number from the host.
        count = (leaves > 0).sum()
        place = torch.arange(-batch_size, 0, device=ring.device) % count
        return order[len(leaves) - count + place]
