"""The frame ring: flows in, one frame of every env per tick; flow out, stacks of frames, n-step returns, and the news
which rows may be drawn from now on and which no longer.

Each frame is stored once, in `[rows, num_envs, *frame_shape]`; a stack exists only while it is gathered. Ids are
absolute: `id = row * num_envs + env` counts on forever, and lies in slot `id % (rows * num_envs)`. The small fields
are kept on the host as well, where they come from, since the rules of drawing read a few of them every tick.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from atari_dqn.replay.arrays import Array, arange, library, native, tensor
from atari_dqn.replay.staging import Staging


class Turnover(NamedTuple):
    """The M slots whose rows may be drawn from now on, or no longer, because of one append; in host memory."""

    slots: NDArray[np.int64]
    """[M], each once"""
    fresh: NDArray[np.bool_]
    """[M], may be drawn from now on; the others were overwritten, or their stacks would reach across the write head"""


class _Field:
    """A small array [rows, num_envs]: `host` for the bookkeeping, `tensor` on the device; on a CPU the same memory."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device) -> None:
        self._memory = torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self.host: NDArray[Any] = self._memory.numpy()
        self.tensor = self._memory.to(device)

    def put(self, row: int, values: ArrayLike | Tensor) -> None:
        self.host[row] = values
        if self.tensor is not self._memory:
            self.tensor[row].copy_(self._memory[row], non_blocking=True)

    def load(self, stored: Tensor) -> None:
        self._memory.copy_(stored)
        self.tensor.copy_(self._memory)

    def flat(self, xp: ModuleType) -> Array:
        """[rows * num_envs], by slot: what `xp` computes with."""
        return native(xp, self.tensor).reshape(-1)


class FrameRing:
    """Frames and what happened after each, for `num_envs` envs and the last `rows` ticks.

    A row (one env at one tick) may be drawn when it is not an episode's final frame, its n-step window is complete or
    ended by a terminal or final frame, and neither its stack nor its window reaches across the write head.
    """

    def __init__(
        self,
        rows: int,
        num_envs: int,
        frame_shape: tuple[int, ...],
        frame_dtype: torch.dtype,
        stack: int,
        n_step: int,
        device: torch.device | str = "cpu",
        xp: ModuleType | None = None,
    ) -> None:
        """`xp` computes, numpy or torch; by default as `arrays.library` has it.

        Raises ValueError when `rows` cannot hold one stack and one window beside the write head.
        """
        if rows < stack + n_step + 1:
            raise ValueError(
                f"{rows} rows are too few for stacks of {stack} and n-step {n_step}: take {stack + n_step + 1}"
            )
        device = torch.device(device)
        self.xp = xp or library(device)
        self.rows, self.num_envs, self.stack, self.n_step, self.device = rows, num_envs, stack, n_step, device
        self.frames = _zeros((rows, num_envs, *frame_shape), frame_dtype, device)
        shape = (rows, num_envs)
        self._age, self._last = _Field(shape, torch.int32, device), _Field(shape, torch.bool, device)
        self._action, self._terminal = _Field(shape, torch.int64, device), _Field(shape, torch.bool, device)
        self._reward = _Field(shape, torch.float32, device)
        self.age = self._age.tensor
        """steps since the episode began"""
        self.action = self._action.tensor
        self.reward = self._reward.tensor
        """raw"""
        self.terminal = self._terminal.tensor
        """do not bootstrap past here; the episode's frames may go on (a lost life)"""
        self.last = self._last.tensor
        """an episode's final frame: no action was taken from it"""
        # As if an episode had just ended: the first frame's age is 0.
        self._last.load(torch.ones(shape, dtype=torch.bool))
        self.drawable: NDArray[np.bool_] = np.zeros(shape, dtype=np.bool_)
        self.num_drawable = 0
        self.newest = -1
        """absolute number of the newest row; -1 before the first append"""
        self.head = torch.full((), -1, dtype=torch.int64, device=device)
        """[] int64, the largest id so far; where a captured graph can see it move"""
        # Rows around the newest one, r: its open windows r-n_step..r-1, itself, and the oldest rows r+1..r+stack-1 (mod
        # rows), each with the age from which on its stack would reach the frame that was just overwritten.
        self._around = np.arange(-n_step, stack)
        self._reaching_age = np.where(self._around < 0, np.iinfo(np.int32).max, self._around)[:, None]
        self._envs = np.arange(num_envs)
        # What is computed with for every batch, in the same memory as the tensors above.
        self.flat_action = self._action.flat(self.xp)
        self._flat_age, self._flat_last = self._age.flat(self.xp), self._last.flat(self.xp)
        self._flat_reward, self._flat_terminal = self._reward.flat(self.xp), self._terminal.flat(self.xp)
        self._head = native(self.xp, self.head)
        self._newest_slots = arange(self.xp, 1 - num_envs, 1, device)
        self._lags = arange(self.xp, 1 - stack, 1, device)
        self._steps = arange(self.xp, 0, n_step + 1, device)
        self._latest = torch.empty((num_envs, stack, *frame_shape), dtype=frame_dtype, device=device)
        self._staging = Staging(num_envs, frame_shape, frame_dtype, device)
        self._uploaded = torch.cuda.Event() if device.type == "cuda" else None

    @property
    def ended(self) -> NDArray[np.bool_]:
        """[num_envs], host memory: the newest row is its episode's last, so the next one begins another."""
        ended: NDArray[np.bool_] = self._last.host[self.newest % self.rows]
        return ended

    @property
    def nbytes(self) -> int:
        tensors = (self.frames, self.age, self.action, self.reward, self.terminal, self.last)
        return sum(tensor.nbytes for tensor in tensors)

    def append(
        self,
        frames: ArrayLike | Tensor,
        last: ArrayLike | Tensor,
        actions: ArrayLike | Tensor | None = None,
        rewards: ArrayLike | Tensor | None = None,
        terminal: ArrayLike | Tensor | None = None,
    ) -> Turnover:
        """Write the frames of a new row, and what led to them into the row before.

        frames: [num_envs, *frame_shape] in the ring's dtype. last: bool [num_envs], the frame is its episode's final
        one. actions int, rewards float (raw), terminal bool, each [num_envs]: taken from, paid after and true of the
        row before; left out together when no env was stepped (a reset). Where the row before is `last` they mean
        nothing.
        Raises ValueError for frames of another shape or dtype, or when a step is missing.
        """
        self._await_uploads()
        before, row = self.newest % self.rows, (self.newest + 1) % self.rows
        if (actions is None or rewards is None or terminal is None) and not self._last.host[before].all():
            raise ValueError("actions, rewards and terminal may be left out only where every env's episode has ended")
        self._put_frames(row, torch.as_tensor(frames))
        if actions is not None and rewards is not None and terminal is not None:
            self._action.put(before, actions)
            self._reward.put(before, rewards)
            self._terminal.put(before, terminal)
        self._age.put(row, np.where(self._last.host[before], 0, self._age.host[before] + 1))
        self._last.put(row, last)
        self.newest += 1
        self.head.fill_((self.newest + 1) * self.num_envs - 1)
        if self._uploaded is not None:
            self._uploaded.record()
        return self._turnover(self._last.host[row] | self._terminal.host[before])

    def cut(self, envs: ArrayLike | Tensor | None = None) -> Turnover:
        """End the episodes of `envs` (bool [num_envs]; default all) at the newest row, as a truncation does."""
        self._await_uploads()
        row = self.newest % self.rows
        self._last.put(row, True if envs is None else self._last.host[row] | np.asarray(envs, dtype=np.bool_))
        return self._turnover(self._last.host[row])

    def _turnover(self, ended: NDArray[np.bool_]) -> Turnover:
        """Settle the rows around the newest one; `ended` (bool [num_envs]): the windows still open end here."""
        rows = (self.newest + self._around) % self.rows
        drawable = self.drawable[rows]
        stale = drawable & (self._age.host[rows] >= self._reaching_age)
        fresh = ~(drawable | self._last.host[rows])
        fresh[1 : self.n_step] &= ended
        fresh[self.n_step :] = False
        self.drawable[rows] = (drawable | fresh) & ~stale
        self.num_drawable += int(fresh.sum()) - int(stale.sum())
        changed = fresh | stale
        slots = rows[:, None] * self.num_envs + self._envs
        return Turnover(slots[changed], fresh[changed])

    def _put_frames(self, row: int, frames: Tensor) -> None:
        target = self.frames[row]
        if frames.shape != target.shape or frames.dtype != target.dtype:
            raise ValueError(
                f"frames are {frames.dtype} {list(frames.shape)}; the ring stores {target.dtype} {list(target.shape)}"
            )
        self._staging.upload(frames, target)

    def _await_uploads(self) -> None:
        if self._uploaded is not None:
            self._uploaded.synchronize()  # they read the very rows on the host that are about to change

    def latest_observation(self) -> Tensor:
        """[num_envs, stack, *frame_shape] at the newest row, oldest frame first; overwritten by the next call."""
        size = self.rows * self.num_envs
        return self.observations(tensor((self._head + self._newest_slots) % size), out=self._latest)

    def observations(self, slots: Tensor, out: Tensor | None = None) -> Tensor:
        """The stacks at `slots` (int64 [B]): [B, stack, *frame_shape], oldest frame first, written to `out` if given.

        The first frame of an episode is repeated where the stack would reach beyond it.
        """
        # Fresh memory is slow memory on a CPU (7x for a batch of 32 stacks): that is what `out` is for.
        at = native(self.xp, slots)[:, None]
        lag = self.xp.maximum(-self._flat_age[at], self._lags)
        sources = (at + lag * self.num_envs) % (self.rows * self.num_envs)
        shape = (len(slots), self.stack, *self.frames.shape[2:])
        stacks = torch.empty(shape, dtype=self.frames.dtype, device=self.device) if out is None else out
        torch.index_select(self.frames.flatten(0, 1), 0, tensor(sources.reshape(-1)), out=stacks.flatten(0, 1))
        return stacks

    def fold(self, slots: Tensor, gamma: float, clip: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Fold the windows that start at drawable `slots` (int64 [B]).

        Returns (returns, discounts, next_slots): float32 [B], the sum of gamma^k * reward over the m steps really
        taken, rewards clipped to [-1, 1] if `clip`; float32 [B], gamma^m, or 0 when a terminal ended the window;
        int64 [B], m rows later. (Sutton & Barto 2018, eq. 7.1.)
        """
        xp, size = self.xp, self.rows * self.num_envs
        window = (native(xp, slots)[:, None] + self._steps * self.num_envs) % size  # [B, n_step + 1]
        taken_from, arrived_at = window[:, :-1], window[:, 1:]
        rewards, terminal = self._flat_reward[taken_from], self._flat_terminal[taken_from]
        ends = terminal | self._flat_last[arrived_at]
        alive = xp.cumsum(ends, 1) == ends  # no end before this step
        powers = xp.asarray(gamma**self._steps, dtype=xp.float32)
        if clip:
            rewards = xp.clip(rewards, -1, 1)
        returns = xp.sum(xp.where(alive, rewards * powers[:-1], 0.0), 1)
        steps = xp.sum(alive, 1)
        discounts = xp.where(xp.any(terminal & alive, 1), 0.0, powers[steps])
        next_slots = window[arange(xp, 0, len(window), self.device), steps]
        return tensor(returns), tensor(discounts), tensor(next_slots)

    def state(self) -> dict[str, Any]:
        """All that `load` needs: a number and tensors, which share the ring's memory (save before the next append)."""
        return {
            "newest": self.newest,
            "frames": self.frames,
            "age": self.age,
            "action": self.action,
            "reward": self.reward,
            "terminal": self.terminal,
            "last": self.last,
            "drawable": torch.from_numpy(self.drawable),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a `state()`, whose frames may be the first rows alone, or lie in this ring's memory already.

        Raises ValueError, before anything is changed, when it belongs to a ring of another shape or dtype.
        """
        frames, shape = state["frames"], tuple(state["age"].shape)
        if (
            shape != (self.rows, self.num_envs)
            or len(frames) > self.rows
            or frames.shape[1:] != self.frames.shape[1:]
            or frames.dtype != self.frames.dtype
        ):
            raise ValueError(
                f"the stored ring is {frames.dtype} {[*shape, *frames.shape[2:]]};"
                f" this one is {self.frames.dtype} {list(self.frames.shape)}"
            )
        for name in ("age", "action", "reward", "terminal", "last", "drawable"):
            if state[name].shape != shape:
                raise ValueError(f"the stored ring's {name} is {list(state[name].shape)}, not {list(shape)}")
        if frames.data_ptr() != self.frames.data_ptr():  # a checkpoint reads them straight into place
            self.frames[: len(frames)].copy_(frames)
        for name in ("age", "action", "reward", "terminal", "last"):
            getattr(self, f"_{name}").load(state[name])
        self.drawable[:] = state["drawable"].numpy()
        self.num_drawable = int(self.drawable.sum())
        self.newest = state["newest"]
        self.head.fill_((self.newest + 1) * self.num_envs - 1)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on a CPU from numpy, whose large arrays cost neither time nor memory until they are written to."""
    if device.type == "cpu":
        return torch.from_numpy(np.zeros(shape, dtype=torch.empty(0, dtype=dtype).numpy().dtype))
    return torch.zeros(shape, dtype=dtype, device=device)
