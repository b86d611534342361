"""What every replay does: flows in, one row of frames per tick; flow out, batches of transitions with their ids.

A frame ring stores, a sum tree draws. Rows that become drawable enter the tree with the largest priority so far and
leave it when the write head comes. Ring, tree and generator live on one device; no method reads anything back from it.
"""

from __future__ import annotations

import abc
import dataclasses
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike
from torch import Tensor

from atari_dqn.replay.arrays import arange, native, tensor
from atari_dqn.replay.ring import FrameRing, Turnover
from atari_dqn.replay.staging import Staging
from atari_dqn.replay.sum_tree import SumTree

NO_ID = -(2**62)
"""No transition's id, and far from all of them: `update_priorities` drops what is said of it."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """B transitions. `obs` and `next_obs` lie in memory that the next `sample` overwrites."""

    obs: Tensor
    """[B, stack, *frame_shape], the env's dtype, oldest frame first"""
    actions: Tensor
    """[B] int64"""
    returns: Tensor
    """[B] float32, n-step"""
    discounts: Tensor
    """[B] float32: gamma^m after m steps, 0 after a terminal"""
    next_obs: Tensor
    """as `obs`, m steps later"""
    weights: Tensor
    """[B] float32 in (0, 1]: importance weights"""
    ids: Tensor
    """[B] int64, absolute: row * num_envs + env"""


class Replay(abc.ABC):
    """`capacity // num_envs` rows of one transition per env, drawn in proportion to the priorities in a sum tree."""

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
        seed: int,
        device: torch.device | str = "cpu",
        xp: ModuleType | None = None,
    ) -> None:
        """`xp` computes, numpy or torch; by default as `arrays.library` has it.

        Raises ValueError when `capacity` leaves too few rows for the stack and the n-step window.
        """
        self.ring = FrameRing(
            capacity // num_envs, num_envs, frame_shape, _torch_dtype(frame_dtype), stack, n_step, device, xp
        )
        self.tree = SumTree(1 << (capacity - 1).bit_length(), device, xp)
        self.capacity, self.gamma, self.clip_rewards = capacity, gamma, clip_rewards
        self.beta = torch.ones((), dtype=torch.float64, device=device)
        """[] float64, the exponent of the importance weights; fill it to change it"""
        self._largest = torch.ones((), dtype=torch.float64, device=device)
        self.generator = torch.Generator(device).manual_seed(seed)
        """its own; a CUDA graph that draws from it must know it"""
        self._stacks = torch.empty(0)
        around = (n_step + stack) * num_envs
        self._staging = [Staging(around, (), dtype, self.ring.device) for dtype in (torch.int64, torch.bool)]

    @property
    def newest(self) -> int:
        """Absolute number of the newest row; -1 before the first append."""
        return self.ring.newest

    @property
    def frames(self) -> Tensor:
        """[rows, num_envs, *frame_shape]: the ring's own tensor, which a checkpoint streams."""
        return self.ring.frames

    @property
    def num_rows(self) -> int:
        return self.ring.rows

    @property
    def fill(self) -> int:
        """Transitions that can be drawn now."""
        return self.ring.num_drawable

    @property
    def nbytes(self) -> int:
        return self.ring.nbytes + self.tree.nbytes

    def append(
        self,
        frames: ArrayLike | Tensor,
        last: ArrayLike | Tensor,
        actions: ArrayLike | Tensor | None = None,
        rewards: ArrayLike | Tensor | None = None,
        terminal: ArrayLike | Tensor | None = None,
    ) -> None:
        """Store one tick; see `FrameRing.append`."""
        self._turn_over(self.ring.append(frames, last, actions, rewards, terminal))

    def cut(self, envs: ArrayLike | Tensor | None = None) -> None:
        """End the episodes of `envs` at the newest row, as a truncation does; see `FrameRing.cut`."""
        self._turn_over(self.ring.cut(envs))

    def _turn_over(self, turnover: Turnover) -> None:
        if len(turnover.slots):
            parts = zip(self._staging, turnover, strict=True)
            slots, fresh = (staging.upload(torch.from_numpy(part)) for staging, part in parts)
            self.tree.write(slots, torch.where(fresh, self._largest, 0.0))

    def latest_observation(self) -> Tensor:
        """[num_envs, stack, *frame_shape] at the newest row: what the actor acts on; overwritten by the next call."""
        return self.ring.latest_observation()

    def sample(self, batch_size: int) -> Batch:
        """Draw `batch_size` transitions, one from each of as many equal shares of the total priority.

        The weights are (N P(i))^-beta over the largest such weight in the buffer, which is (smallest / p_i)^beta
        (Schaul et al. 2016, 3.4 and appendix B.2.1). Raises RuntimeError when there is nothing to draw yet.
        """
        if not self.ring.num_drawable:
            raise RuntimeError(f"nothing to draw yet: {self.newest + 1} rows are stored, and no transition is complete")
        ring, tree, xp = self.ring, self.tree, self.tree.xp
        slots = self._draw(batch_size)
        returns, discounts, next_slots = ring.fold(slots, self.gamma, self.clip_rewards)
        if len(self._stacks) != 2 * batch_size:
            shape = (2 * batch_size, ring.stack, *ring.frames.shape[2:])
            self._stacks = torch.empty(shape, dtype=ring.frames.dtype, device=ring.device)
        obs, next_obs = ring.observations(torch.cat((slots, next_slots)), out=self._stacks).chunk(2)
        at = native(xp, slots)
        weights = (native(xp, tree.smallest) / native(xp, tree.leaves)[at]) ** native(xp, self.beta)
        head = native(xp, ring.head)
        return Batch(
            obs=obs,
            actions=tensor(ring.flat_action[at]),
            returns=returns,
            discounts=discounts,
            next_obs=next_obs,
            weights=tensor(weights).to(torch.float32),
            ids=tensor(head - (head - at) % (ring.rows * ring.num_envs)),
        )

    def _draw(self, batch_size: int) -> Tensor:
        """[batch_size] int64 slots of rows that may be drawn."""
        xp, device = self.tree.xp, self.ring.device
        mass = torch.rand(batch_size, dtype=torch.float64, device=device, generator=self.generator)
        shares = native(xp, mass) + arange(xp, 0, batch_size, device)
        return self.tree.find(tensor(shares * (native(xp, self.tree.total) / batch_size)))

    @abc.abstractmethod
    def update_priorities(self, ids: ArrayLike | Tensor, td_errors: ArrayLike | Tensor) -> None:
        """Learn how wrong the values of a batch's transitions were: ids int64 [B], td_errors float [B], any sign."""

    def state(self) -> dict[str, Any]:
        """All that `load` needs, as numbers and tensors; those of the ring and tree share memory with them."""
        return {
            **self.ring.state(),
            "leaves": self.tree.leaves,
            "largest": self._largest,
            "generator": self.generator.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a `state()`. Raises ValueError when it belongs to a replay of another size or shape.

        One of another device is taken over, too; the draws then go on with other random numbers.
        """
        self.ring.load(state)
        self.tree.load(state["leaves"])
        self._largest.copy_(state["largest"])
        if state["generator"].shape == self.generator.get_state().shape:
            self.generator.set_state(state["generator"])
        else:  # another kind of device drew so far, and its generator's state means nothing to this one's
            self.generator.manual_seed(self.generator.initial_seed() + self.newest + 1)


def _torch_dtype(dtype: DTypeLike | torch.dtype) -> torch.dtype:
    return dtype if isinstance(dtype, torch.dtype) else torch.from_numpy(np.empty(0, dtype)).dtype
