"""Uniform replay: flows in, transitions; flows out, batches in which each is as likely as any other.

The same ring and tree as the prioritized replay with every priority 1, so that all weights are 1.
"""

from __future__ import annotations

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from atari_dqn.replay.base import Replay


class UniformReplay(Replay):
    """Draws all transitions alike, from a buffer of any capacity."""

    def update_priorities(self, ids: ArrayLike | Tensor, td_errors: ArrayLike | Tensor) -> None:
        """Nothing: it stands here so that a learner need not know which replay it has."""


class NewestReplay(UniformReplay):
    """Learns from the last transitions, from a buffer of any capacity: keep it little larger than a batch."""

    def _draw(self, batch_size: int) -> Tensor:
        """Oldest first; where fewer are complete than asked for, they come round again."""
        ring, leaves = self.ring, self.tree.leaves
        size = ring.rows * ring.num_envs
        slots = torch.arange(len(leaves), device=ring.device)
        ids = ring.head - (ring.head - slots) % size
        order = ids.masked_fill(leaves == 0, NOT_COMPLETE).argsort()
        # counted on the device: a CUDA graph would freeze a number of the host
        count = (leaves > 0).sum()
        place = torch.arange(-batch_size, 0, device=ring.device) % count
        return order[len(leaves) - count + place]


NOT_COMPLETE = -(2**62)
"""Before every id."""
