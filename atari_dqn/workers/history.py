"""What brings envs back: the seeds they began from and the actions since flow in; the same ticks once more flow out.

An emulator's state cannot be saved soundly (a clone of it is wrong for some games), but it is a function of a seed and
the actions since. Only a *seeded* reset forgets all that went before, so at the first end of an episode after so many
ticks an env is seeded anew: its anchor. What lies before the oldest anchor is forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

NO_SEED = -1
"""In an array of seeds: this env is not seeded at this tick."""
Ints = npt.NDArray[np.int64]


class History:
    """Seeds and actions of `num_envs` envs. Env e's k-th seed depends on `seed`, e and k alone."""

    def __init__(self, seed: int, num_envs: int, anchor_every: int | None) -> None:
        """`anchor_every`: ticks after which an env is seeded anew when its episode ends; None: never, and nothing is
        written down."""
        self._seed, self._every = seed, anchor_every
        self.seeds: Ints = np.array(env_seeds(seed, num_envs))
        """[num_envs], of the envs' anchors"""
        self._drawn: Ints = np.ones(num_envs, np.int64)
        """seeds of each env so far"""
        self._anchor: Ints = np.full(num_envs, -1)
        """the tick, counted in `_actions`, at which each env was seeded; -1: before the first"""
        # In one piece: an array for each tick, all of them long-lived, would lie scattered between the learner's large
        # blocks, which then find no room where they were and make the process grow.
        self._actions = bytearray()
        """int32 [ticks, num_envs]"""
        self._tick_bytes = 4 * num_envs

    def __len__(self) -> int:
        return len(self._actions) // self._tick_bytes

    def draw(self, envs: npt.NDArray[np.bool_]) -> Ints:
        """Next seeds of `envs` (bool [num_envs]): [num_envs], `NO_SEED` for the others; used once `add` has them."""
        seeds = np.full(len(envs), NO_SEED)
        for env in np.flatnonzero(envs):
            entropy = (self._seed, int(env), int(self._drawn[env]))
            seeds[env] = np.random.SeedSequence(entropy).generate_state(1)[0] >> 1
        return seeds

    def due(self, over: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which envs are to be seeded at this tick; `over` (bool [num_envs]): their episodes have ended."""
        if self._every is None:
            return np.zeros_like(over)
        return over & (len(self) - self._anchor > self._every)

    def add(self, actions: npt.NDArray[np.integer[Any]], seeds: Ints) -> None:
        """Write a finished tick down: its actions, and the seeds from which envs began anew at its end."""
        seeded = seeds != NO_SEED
        self._drawn += seeded
        if self._every is None:
            return
        self._actions += actions.astype(np.int32).tobytes()
        if seeded.any():
            self.seeds[seeded] = seeds[seeded]
            self._anchor[seeded] = len(self) - 1
            past = int(self._anchor.min()) + 1
            del self._actions[: past * self._tick_bytes]
            self._anchor -= past

    @property
    def anchors(self) -> Ints:
        """[num_envs], the tick of `ticks` at whose end each env began from its seed; -1: before the first"""
        return self._anchor

    def ticks(self) -> Iterator[npt.NDArray[np.int32]]:
        """The actions of each tick since the oldest anchor, [num_envs]."""
        yield from self._table()

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All that `load` needs; empty when nothing is written down."""
        if self._every is None:
            return {}
        seed, actions = np.array(self._seed), self._table()
        return {"seed": seed, "seeds": self.seeds, "drawn": self._drawn, "anchor": self._anchor, "actions": actions}

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over a `state()`, and with it the seed that all later ones are drawn from."""
        self._seed = int(state["seed"])
        self.seeds, self._drawn, self._anchor = (state[name].copy() for name in ("seeds", "drawn", "anchor"))
        self._actions = bytearray(state["actions"].astype(np.int32).tobytes())

    def _table(self) -> npt.NDArray[np.int32]:
        """[ticks, num_envs]; a copy, for what looks into a bytearray keeps it from growing."""
        return np.frombuffer(self._actions, np.int32).reshape(-1, len(self.seeds)).copy()


def env_seeds(seed: int, num_envs: int) -> list[int]:
    """The first seed of each env, 31 bits, all distinct; that of env e depends on `seed` and e alone."""
    root = int(np.random.SeedSequence(seed).generate_state(1)[0])
    stride = 0x9E3779B1  # odd, so that no two of 2^31 envs meet
    return [(root + env * stride) % 2**31 for env in range(num_envs)]
