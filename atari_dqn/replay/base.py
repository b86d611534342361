"""Base class of all replays, and the batch of transitions they return.

A frame ring stores transitions and a sum tree draws them. A transition that becomes drawable enters the tree with the
largest priority so far; it leaves the tree before it is overwritten. Ring, tree and random generator live on one
device, and no method reads anything back from it.
"""

import abc
import dataclasses
from typing import Any

import torch
from numpy.typing import ArrayLike, DTypeLike
from torch import Tensor

from atari_dqn.replay.arrays import Library, arange, as_array, as_tensor
from atari_dqn.replay.ring import Changes, FrameRing
from atari_dqn.replay.staging import Staging
from atari_dqn.replay.sum_tree import SumTree

NO_ID = -(2**62)
"""Id that no transition ever has; `update_priorities` ignores it."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """B transitions. The next `sample` overwrites `obs` and `next_obs`."""

    obs: Tensor
    """Observations, [B, stack, *frame_shape] in the environment's dtype, oldest frame first."""
    actions: Tensor
    """Actions taken, int64 [B]."""
    returns: Tensor
    """N-step returns, float32 [B]."""
    discounts: Tensor
    """Discounts of the value that follows: gamma^m after m steps, 0 after a terminal, float32 [B]."""
    next_obs: Tensor
    """Observations m steps later, like `obs`."""
    weights: Tensor
    """Importance weights in (0, 1], float32 [B]."""
    ids: Tensor
    """Absolute ids, row * num_envs + env, int64 [B]."""


class Replay(abc.ABC):
    """Up to `capacity` transitions, drawn in proportion to the priorities in a sum tree."""

    def __init__(
        self,
        capacity: int,
        num_envs: int,
        frame_shape: tuple[int, ...],
        frame_dtype: DTypeLike,
        stack: int,
        *,
        n_step: int,
        gamma: float,
        clip_rewards: bool,
        seed: int,
        device: torch.device | str = "cpu",
        xp: Library | None = None,
    ) -> None:
        """Allocate an empty replay; the arguments that are not named here are those of the `FrameRing`.

        Args:
            capacity: Maximum number of transitions; the ring has `capacity // num_envs` rows.
            gamma: Discount factor per env step.
            clip_rewards: Whether to clip rewards to [-1, 1].
            seed: Seed of the draws.
        """
        self.ring = FrameRing(capacity // num_envs, num_envs, frame_shape, frame_dtype, stack, n_step, device, xp)
        self.tree = SumTree(1 << (capacity - 1).bit_length(), device, xp)
        self.capacity, self.gamma, self.clip_rewards = capacity, gamma, clip_rewards
        self.beta = torch.ones((), dtype=torch.float64, device=device)
        """Exponent of the importance weights, float64 []; fill it to change it."""
        self._largest = torch.ones((), dtype=torch.float64, device=device)
        self.generator = torch.Generator(device).manual_seed(seed)
        """Source of the draws; a CUDA graph that draws must register it."""
        self._stacks = torch.empty(0)
        around = (n_step + stack) * num_envs
        self._staging = [Staging(around, (), dtype, self.ring.device) for dtype in (torch.int64, torch.bool)]

    @property
    def newest(self) -> int:
        """Absolute number of the newest row; -1 before the first append."""
        return self.ring.newest

    @property
    def frames(self) -> Tensor:
        """The ring's own tensor of frames, [rows, num_envs, *frame_shape], which a checkpoint streams."""
        return self.ring.frames

    @property
    def num_rows(self) -> int:
        """Number of rows (ticks) in the ring."""
        return self.ring.rows

    @property
    def fill(self) -> int:
        """Number of transitions that can be drawn."""
        return self.ring.num_drawable

    @property
    def nbytes(self) -> int:
        """Memory of the ring and the tree."""
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
        self._update_tree(self.ring.append(frames, last, actions, rewards, terminal))

    def cut(self, envs: ArrayLike | Tensor | None = None) -> None:
        """End the episodes of `envs` at the newest row, as a truncation does; see `FrameRing.cut`."""
        self._update_tree(self.ring.cut(envs))

    def _update_tree(self, changes: Changes) -> None:
        if len(changes[0]):
            parts = zip(self._staging, map(torch.from_numpy, changes), strict=True)
            slots, drawable = (staging.upload(part) for staging, part in parts)
            self.tree.write(slots, torch.where(drawable, self._largest, 0.0))

    def latest_observation(self) -> Tensor:
        """[num_envs, stack, *frame_shape] at the newest row, for the actor; overwritten by the next call."""
        return self.ring.latest_observation()

    def sample(self, batch_size: int) -> Batch:
        """Draw `batch_size` transitions, one from each of as many equal shares of the total priority.

        The weights are (N P(i))^-beta divided by the largest of the batch, which is (min_j p_j / p_i)^beta (Schaul et
        al. 2016, section 3.4; that the batch's largest is meant, its authors say in chainer/chainerrl#278).

        Raises:
            RuntimeError: No transition is complete yet.
        """
        if not self.ring.num_drawable:
            raise RuntimeError(f"nothing to draw yet: {self.newest + 1} rows are stored, but no transition is complete")
        ring, tree, xp = self.ring, self.tree, self.tree.xp
        slots = self._draw(batch_size)
        returns, discounts, next_slots = ring.n_step_returns(slots, self.gamma, self.clip_rewards)
        if len(self._stacks) != 2 * batch_size:
            shape = (2 * batch_size, ring.stack, *ring.frames.shape[2:])
            self._stacks = torch.empty(shape, dtype=ring.frames.dtype, device=ring.device)
        obs, next_obs = ring.observations(torch.cat((slots, next_slots)), out=self._stacks).chunk(2)
        at = as_array(xp, slots)
        priorities = as_array(xp, tree.leaves)[at]
        weights = (xp.amin(priorities) / priorities) ** as_array(xp, self.beta)
        head = as_array(xp, ring.head)
        return Batch(
            obs=obs,
            actions=as_tensor(ring.flat_action[at]),
            returns=returns,
            discounts=discounts,
            next_obs=next_obs,
            weights=as_tensor(weights).to(torch.float32),
            ids=as_tensor(head - (head - at) % (ring.rows * ring.num_envs)),
        )

    def _draw(self, batch_size: int) -> Tensor:
        """Drawable slots, int64 [batch_size]."""
        xp, device = self.tree.xp, self.ring.device
        mass = torch.rand(batch_size, dtype=torch.float64, device=device, generator=self.generator)
        shares = as_array(xp, mass) + arange(xp, 0, batch_size, device)
        return self.tree.find(as_tensor(shares * (as_array(xp, self.tree.total) / batch_size)))

    @abc.abstractmethod
    def update_priorities(self, ids: ArrayLike | Tensor, td_errors: ArrayLike | Tensor) -> None:
        """Note the TD errors (float [B], any sign) of the transitions `ids` (int64 [B]) of a batch."""

    def state(self) -> dict[str, Any]:
        """Return what `load` needs: numbers, and tensors of which the ring's and tree's share their memory."""
        return {
            **self.ring.state(),
            "leaves": self.tree.leaves,
            "largest": self._largest,
            "generator": self.generator.get_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a `state()`. If it comes from another kind of device, later draws use different random numbers.

        Raises:
            ValueError: It belongs to a replay of another size, shape or dtype.
        """
        self.ring.load(state)
        self.tree.load(state["leaves"])
        self._largest.copy_(state["largest"])
        if state["generator"].shape == self.generator.get_state().shape:
            self.generator.set_state(state["generator"])
        else:  # the state of another kind of device's generator
            self.generator.manual_seed(self.generator.initial_seed() + self.newest + 1)
