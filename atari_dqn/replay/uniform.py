"""Uniform replay: flows in, transitions; flows out, batches in which each is as likely as any other.

The same ring and tree as the prioritized replay with every priority 1, so that all weights are 1.
"""

from __future__ import annotations

from numpy.typing import ArrayLike
from torch import Tensor

from atari_dqn.replay.base import Replay


class UniformReplay(Replay):
    """Draws all transitions alike, from a buffer of any capacity."""

    def update_priorities(self, ids: ArrayLike | Tensor, td_errors: ArrayLike | Tensor) -> None:
        """Nothing: it stands here so that a learner need not know which replay it has."""
