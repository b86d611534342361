"""Uniform replay on disk that keeps each frame once, for peers whose published replay of a million does not fit.

Memory-mapped: the pages in use count as memory, and a stop has nothing to write. Only numpy is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

STACK = 4


class FrameReplay:
    """Transitions as rows of a ring, each with the newest frame of its observation.

    An observation is the frames of its row and the 3 before it; before a game's first frame, that one is repeated, as
    the peers' frame stacks do. The next observation of a terminal transition is not to be used.
    """

    def __init__(self, directory: Path, capacity: int, seed: int, added: int = 0) -> None:
        """Open the arrays in `directory`, with `added` rows of a run that is resumed."""
        directory.mkdir(exist_ok=True)

        def column(name: str, dtype: Any, *shape: int) -> np.ndarray:
            file = directory / name
            return np.asarray(np.memmap(file, dtype, "r+" if file.exists() else "w+", shape=(capacity, *shape)))

        self._frames = column("frames", np.uint8, 84, 84)
        self._actions, self._rewards = column("actions", np.int64), column("rewards", np.float32)
        self._terminal, self._first = column("terminal", np.bool_), column("first", np.bool_)
        self.capacity, self.added = capacity, added
        self._new_game = True
        self._rng = np.random.default_rng((seed, added))

    def __len__(self) -> int:
        return min(self.added, self.capacity)

    def add(self, frame: np.ndarray, action: int, reward: float, terminal: bool) -> None:
        """Add a transition from the observation whose newest frame, [84, 84] uint8, is `frame`."""
        row = self.added % self.capacity
        self._frames[row], self._actions[row], self._rewards[row] = frame, action, reward
        self._terminal[row], self._first[row] = terminal, self._new_game
        self._new_game = terminal
        self.added += 1

    def cut(self) -> None:
        """The game ends here without a terminal: the newest transition is never drawn, for its end is unknown."""
        self._new_game = True

    def sample(self, batch_size: int) -> tuple[np.ndarray, ...]:
        """Observations [B, 4, 84, 84], actions, rewards, next observations and terminals of uniformly drawn rows."""
        rows = self._draw(batch_size)
        following = (rows + 1) % self.capacity
        while (cut := self._first[following] & ~self._terminal[rows]).any():
            rows[cut] = self._draw(int(cut.sum()))
            following = (rows + 1) % self.capacity
        return (
            self._stacks(rows),
            self._actions[rows],
            self._rewards[rows],
            self._stacks(following),
            self._terminal[rows],
        )

    def _draw(self, count: int) -> np.ndarray:
        """Rows but the newest, whose next frame is not there yet, and the oldest, whose frames are overwritten."""
        oldest = self.added - len(self)
        return self._rng.integers(oldest + (STACK - 1 if oldest else 0), self.added - 1, count) % self.capacity

    def _stacks(self, rows: np.ndarray) -> np.ndarray:
        stack = [rows]
        for _ in range(STACK - 1):
            stack.append(np.where(self._first[stack[-1]], stack[-1], (stack[-1] - 1) % self.capacity))
        return self._frames[np.stack(stack[::-1], axis=1)]
