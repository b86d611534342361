"""Prioritized replay: flows in, transitions and their temporal-difference errors; flows out, batches drawn by error.

Schaul, Quan, Antonoglou & Silver, "Prioritized Experience Replay", 2016, the proportional variant.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike
from torch import Tensor

from atari_dqn.replay.arrays import native, tensor
from atari_dqn.replay.base import Replay

PRIORITY_EPSILON = 1e-6
"""Added to the absolute error before the exponent, so that no transition's chance is 0."""


class PrioritizedReplay(Replay):
    """Draws a transition with probability proportional to (|td_error| + 1e-6)^alpha."""

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        frame_shape: tuple[int, ...],
        frame_dtype: DTypeLike | torch.dtype,
        stack: int,
        *,
        n_step: int,
        gamma: float,
        clip_rewards: bool,
        alpha: float,
        seed: int,
        device: torch.device | str = "cpu",
        xp: ModuleType | None = None,
    ) -> None:
        """Raises ValueError when `capacity` is no power of two or leaves too few rows."""
        if capacity < 1 or capacity & (capacity - 1):
            below = 2 ** max(0, capacity.bit_length() - 1)
            raise ValueError(
                f"a prioritized replay's capacity is a power of two, not {capacity}: take {below} or {2 * below}"
            )
        super().__init__(
            capacity,
            num_envs,
            frame_shape,
            frame_dtype,
            stack,
            n_step=n_step,
            gamma=gamma,
            clip_rewards=clip_rewards,
            seed=seed,
            device=device,
            xp=xp,
        )
        self.alpha = alpha

    def update_priorities(self, ids: ArrayLike | Tensor, td_errors: ArrayLike | Tensor) -> None:
        """Give the transitions `ids` (int64 [B], a batch's) the priorities of their `td_errors` (float [B], any sign).

        An id that was overwritten or is no longer drawable is dropped; of duplicates the larger error wins.
        Raises ValueError for NaN and infinite errors (on a GPU the device asserts), and changes nothing then.
        """
        ring, tree, xp = self.ring, self.tree, self.tree.xp
        errors = td_errors.detach() if isinstance(td_errors, Tensor) else np.asarray(td_errors)
        magnitudes = native(xp, torch.as_tensor(errors, dtype=torch.float64, device=ring.device).abs())
        given = native(xp, torch.as_tensor(ids if isinstance(ids, Tensor) else np.asarray(ids), device=ring.device))
        size, head = ring.rows * ring.num_envs, native(xp, ring.head)
        slots = given % size
        keep = (given > head - size) & (given <= head) & (native(xp, tree.leaves)[slots] > 0)
        priorities = (magnitudes + PRIORITY_EPSILON) ** self.alpha
        tree.write(tensor(slots), tensor(priorities), keep=tensor(keep))
        largest = native(xp, self._largest)
        largest[...] = xp.maximum(largest, xp.amax(xp.where(keep, priorities, 0.0)))
