"""Ring buffer that stores every frame once and gathers observations and n-step returns from it.

Frames lie in one tensor [rows, num_envs, *frame_shape], a row for each tick; a stack exists only while it is gathered.
Ids are absolute: `id = row * num_envs + env`, where rows are counted from the first one on, and lies in slot
`id % (rows * num_envs)`. The small fields are kept on the host as well, since the rules that decide which transitions
may be drawn read a few of them at every tick.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from torch import Tensor

from atari_dqn.replay.arrays import Library, arange, as_array, as_tensor, library
from atari_dqn.replay.staging import Staging

Changes = tuple[NDArray[np.int64], NDArray[np.bool_]]
"""Slots that became drawable or stopped being so, int64 [M], and whether each is so now, bool [M]; in host memory."""


class _Field:
    """A small array [rows, num_envs]: `host` for the bookkeeping, `tensor` on the device; on a CPU the same memory."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, device: torch.device, xp: Library) -> None:
        self._memory = torch.zeros(shape, dtype=dtype, pin_memory=device.type == "cuda")
        self.host: NDArray[Any] = self._memory.numpy()
        self.tensor = self._memory.to(device)
        self.flat = as_array(xp, self.tensor).reshape(-1)  # indexed by slot

    def put(self, row: int, values: ArrayLike | Tensor) -> None:
        self.host[row] = values
        if self.tensor is not self._memory:
            self.tensor[row].copy_(self._memory[row], non_blocking=True)

    def load(self, stored: Tensor) -> None:
        self._memory.copy_(stored)
        self.tensor.copy_(self._memory)


class FrameRing:
    """Frames and what happened after each, for `num_envs` environments and the last `rows` ticks.

    A transition (one environment at one tick) is drawable when its frame is not an episode's final one, its n-step
    window is complete or was ended by a terminal or final frame, and neither its stack nor its window reaches across
    the write head.
    """

    def __init__(
        self,
        rows: int,
        num_envs: int,
        frame_shape: tuple[int, ...],
        frame_dtype: DTypeLike,
        stack: int,
        n_step: int,
        device: torch.device | str = "cpu",
        xp: Library | None = None,
    ) -> None:
        """Allocate an empty ring for `rows` ticks, observations of `stack` frames and windows of `n_step` env steps.

        `xp` is the library that computes; by default the one `arrays.library` chooses for `device`. Raises `ValueError`
        if `rows` cannot hold one stack and one window beside the write head.
        """
        if rows < stack + n_step + 1:
            raise ValueError(
                f"{rows} rows are too few for stacks of {stack} and n-step {n_step}; try {stack + n_step + 1} or more"
            )
        device = torch.device(device)
        self.xp = xp or library(device)
        self.rows, self.num_envs, self.stack, self.n_step, self.device = rows, num_envs, stack, n_step, device
        shape, dtype = (rows, num_envs), torch.from_numpy(np.empty(0, frame_dtype)).dtype
        if device.type == "cpu":  # numpy's large zeroed arrays cost neither time nor memory until they are written to
            self.frames = torch.from_numpy(np.zeros((*shape, *frame_shape), frame_dtype))
        else:
            self.frames = torch.zeros((*shape, *frame_shape), dtype=dtype, device=device)
        dtypes = {
            "age": torch.int32,
            "action": torch.int64,
            "reward": torch.float32,
            "terminal": torch.bool,
            "last": torch.bool,
        }
        self._fields = {name: _Field(shape, kind, device, self.xp) for name, kind in dtypes.items()}
        self._age, self._action, self._reward, self._terminal, self._last = self._fields.values()
        self.age = self._age.tensor
        """Env steps since the episode's first frame, int32 [rows, num_envs]."""
        self.action = self._action.tensor
        """Action taken from the frame, int64 [rows, num_envs]."""
        self.reward = self._reward.tensor
        """Unclipped reward for that action, float32 [rows, num_envs]."""
        self.terminal = self._terminal.tensor
        """Whether bootstrapping stops after that action, bool [rows, num_envs]. After a lost life the episode's frames
        continue all the same."""
        self.last = self._last.tensor
        """Whether the frame is its episode's final one, from which no action was taken, bool [rows, num_envs]."""
        # As if an episode had just ended, so that the first frame has age 0.
        self._last.load(torch.ones(shape, dtype=torch.bool))
        self.drawable: NDArray[np.bool_] = np.zeros(shape, dtype=np.bool_)
        """Whether each transition may be drawn, bool [rows, num_envs]; in host memory."""
        self.num_drawable = 0
        """Number of transitions that may be drawn."""
        self.newest = -1
        """Absolute number of the newest row; -1 before the first append."""
        self.head = torch.full((), -1, dtype=torch.int64, device=device)
        """Largest id so far, int64 []; a tensor, so that a captured CUDA graph sees it move."""
        self._head = as_array(self.xp, self.head)
        self._after_head = np.arange(stack)[:, None]
        self.flat_action = self._action.flat
        """`action` as an array of `xp`, indexed by slot."""
        self._newest_slots = arange(self.xp, 1 - num_envs, 1, device)
        self._lags = arange(self.xp, 1 - stack, 1, device)
        self._steps = arange(self.xp, 0, n_step + 1, device)
        self._latest = torch.empty((num_envs, stack, *frame_shape), dtype=dtype, device=device)
        self._staging = Staging(num_envs, frame_shape, dtype, device)
        self._uploaded = torch.cuda.Event() if device.type == "cuda" else None

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Whether the newest frame is its episode's final one, bool [num_envs], in host memory."""
        ended: NDArray[np.bool_] = self._last.host[self.newest % self.rows]
        return ended

    @property
    def nbytes(self) -> int:
        """Memory of the frames and fields on the device."""
        return self.frames.nbytes + sum(field.tensor.nbytes for field in self._fields.values())

    def append(
        self,
        frames: ArrayLike | Tensor,
        last: ArrayLike | Tensor,
        actions: ArrayLike | Tensor | None = None,
        rewards: ArrayLike | Tensor | None = None,
        terminal: ArrayLike | Tensor | None = None,
    ) -> Changes:
        """Write the frames of a new row, and what led to them into the row before.

        Args:
            frames: New frames, [num_envs, *frame_shape] in the ring's dtype.
            last: Whether the new frame is its episode's final one, bool [num_envs].
            actions: Actions taken from the row before, int [num_envs]. They, `rewards` and `terminal` are ignored
                where the row before is `last`, and omitted together when no environment was stepped (a reset).
            rewards: Unclipped rewards for the actions, float [num_envs].
            terminal: Whether bootstrapping stops after the actions, bool [num_envs].

        Raises:
            ValueError: The frames have another shape or dtype, or the actions, rewards or terminals are missing.
        """
        self._await_uploads()
        before, row = self.newest % self.rows, (self.newest + 1) % self.rows
        if (actions is None or rewards is None or terminal is None) and not self._last.host[before].all():
            raise ValueError("cannot omit actions, rewards and terminal: some episode has not ended")
        new, target = torch.as_tensor(frames), self.frames[row]
        if new.shape != target.shape or new.dtype != target.dtype:
            raise ValueError(f"frames must be {target.dtype} {list(target.shape)}, not {new.dtype} {list(new.shape)}")
        self._staging.upload(new, target)
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
        return self._update_drawable(self._last.host[row] | self._terminal.host[before])

    def cut(self, envs: ArrayLike | Tensor | None = None) -> Changes:
        """End the episodes of `envs` (bool [num_envs]; default all) at the newest row, as a truncation does."""
        self._await_uploads()
        row = self.newest % self.rows
        self._last.put(row, True if envs is None else self._last.host[row] | np.asarray(envs, dtype=np.bool_))
        return self._update_drawable(self._last.host[row])

    def _update_drawable(self, ended: NDArray[np.bool_]) -> Changes:
        """Apply the rules that the newest row r changes; episodes or returns end there where `ended` (bool [num_envs]).

        The n-step windows of rows r-n_step to r-1 were open until now. That of the first is complete; the others
        complete only where something ended. Row r has overwritten the oldest frame, so of rows r to r+stack-1 those
        whose stack reaches back to it, being at least as old as their distance from it, may no longer be drawn.
        """
        windows = (self.newest + np.arange(-self.n_step, 0)) % self.rows
        complete = np.tile(ended, (self.n_step, 1))
        complete[0] = True
        fresh = complete & ~self._last.host[windows] & ~self.drawable[windows]
        stacks = (self.newest + np.arange(self.stack)) % self.rows
        stale = (self._age.host[stacks] >= self._after_head) & self.drawable[stacks]
        self.drawable[windows] |= fresh
        self.drawable[stacks] &= ~stale
        self.num_drawable += int(fresh.sum()) - int(stale.sum())
        gained, lost = self._slots(windows, fresh), self._slots(stacks, stale)
        return np.concatenate((gained, lost)), np.repeat([True, False], [len(gained), len(lost)])

    def _slots(self, rows: NDArray[np.int64], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Slots of the transitions of `rows` where `chosen`, bool [len(rows), num_envs], is True."""
        row, env = np.nonzero(chosen)
        return rows[row] * self.num_envs + env

    def _await_uploads(self) -> None:
        if self._uploaded is not None:
            self._uploaded.synchronize()  # they read the very rows on the host that are about to change

    def latest_observation(self) -> Tensor:
        """[num_envs, stack, *frame_shape] at the newest row, oldest frame first; overwritten by the next call."""
        slots = (self._head + self._newest_slots) % (self.rows * self.num_envs)
        return self.observations(as_tensor(slots), out=self._latest)

    def observations(self, slots: Tensor, out: Tensor | None = None) -> Tensor:
        """Gather stacks of frames. The first frame of an episode is repeated where a stack would reach beyond it.

        Args:
            slots: Slots of the stacks' newest frames, int64 [B].
            out: Optional tensor to write to, [B, stack, *frame_shape].

        Returns:
            [B, stack, *frame_shape], oldest frame first.
        """
        # Fresh memory is slow memory on a CPU (7x for a batch of 32 stacks), hence `out`.
        at = as_array(self.xp, slots)[:, None]
        lag = self.xp.maximum(-self._age.flat[at], self._lags)
        sources = (at + lag * self.num_envs) % (self.rows * self.num_envs)
        shape = (len(slots), self.stack, *self.frames.shape[2:])
        stacks = torch.empty(shape, dtype=self.frames.dtype, device=self.device) if out is None else out
        torch.index_select(self.frames.flatten(0, 1), 0, as_tensor(sources.reshape(-1)), out=stacks.flatten(0, 1))
        return stacks

    def n_step_returns(self, slots: Tensor, gamma: float, clip: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Fold n-step windows into returns (Sutton & Barto 2018, eq. 7.1).

        Args:
            slots: Drawable slots at which the windows start, int64 [B].
            gamma: Discount factor per env step.
            clip: Whether to clip rewards to [-1, 1].

        Returns:
            returns: float32 [B], the sum of gamma^k * reward over the m steps taken before the window ended.
            discounts: float32 [B], gamma^m, or 0 if a terminal ended the window.
            next_slots: int64 [B], the slots m rows later.
        """
        xp, size = self.xp, self.rows * self.num_envs
        window = (as_array(xp, slots)[:, None] + self._steps * self.num_envs) % size  # [B, n_step + 1]
        taken_from, arrived_at = window[:, :-1], window[:, 1:]
        rewards, terminal = self._reward.flat[taken_from], self._terminal.flat[taken_from]
        ends = terminal | self._last.flat[arrived_at]
        alive = xp.cumsum(ends, 1) <= ends  # no end before this step
        powers = xp.asarray(gamma**self._steps, dtype=xp.float32)
        if clip:
            rewards = xp.clip(rewards, -1, 1)
        returns = xp.sum(xp.where(alive, rewards * powers[:-1], 0.0), 1)
        steps = xp.sum(alive, 1)
        discounts = xp.where(xp.any(terminal & alive, 1), 0.0, powers[steps])
        next_slots = window[arange(xp, 0, len(window), self.device), steps]
        return as_tensor(returns), as_tensor(discounts), as_tensor(next_slots)

    def state(self) -> dict[str, Any]:
        """Return what `load` needs: a number, and tensors that share the ring's memory."""
        fields = {name: field.tensor for name, field in self._fields.items()}
        return {"newest": self.newest, "frames": self.frames, **fields, "drawable": torch.from_numpy(self.drawable)}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a `state()`. Its frames may be only the first rows, or lie in this ring's memory already.

        Raises:
            ValueError: It belongs to a ring of another shape or dtype; nothing was changed.
        """
        frames, shapes = state["frames"], {tuple(state[name].shape) for name in (*self._fields, "drawable")}
        if (
            shapes != {(self.rows, self.num_envs)}
            or len(frames) > self.rows
            or frames.shape[1:] != self.frames.shape[1:]
            or frames.dtype != self.frames.dtype
        ):
            raise ValueError(
                f"the stored ring holds {frames.dtype} {list(frames.shape[2:])} in arrays of {sorted(shapes)};"
                f" this one holds {self.frames.dtype} {list(self.frames.shape)}"
            )
        if frames.data_ptr() != self.frames.data_ptr():  # a checkpoint reads them straight into place
            self.frames[: len(frames)].copy_(frames)
        for name, field in self._fields.items():
            field.load(state[name])
        self.drawable[:] = state["drawable"].numpy()
        self.num_drawable = int(self.drawable.sum())
        self.newest = state["newest"]
        self.head.fill_((self.newest + 1) * self.num_envs - 1)
