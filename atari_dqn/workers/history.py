"""Seeds and actions from which an exact resume brings environments back, by repeating their ticks.

An emulator's state cannot be saved reliably (for some games a clone of it is wrong), but it is a function of a seed and
the actions since. Only a *seeded* reset erases everything before it, so at the first end of an episode after a given
number of ticks an environment is seeded again: its anchor. Actions before the oldest anchor are discarded.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

NO_SEED = -1
"""Value in an array of seeds for an environment that is not seeded at this tick."""
Ints = npt.NDArray[np.int64]


class History:
    """Seeds and actions of `num_envs` environments. Environment e's k-th seed depends only on `seed`, e and k."""

    def __init__(self, seed: int, num_envs: int, anchor_every: int | None) -> None:
        """Start at the first seeds. After `anchor_every` ticks an environment is seeded again when its episode ends.

        Without it (None) none ever is, and no actions are recorded.
        """
        self._seed, self._every = seed, anchor_every
        self.seeds: Ints = np.array(env_seeds(seed, num_envs))
        """Seeds of the anchors, [num_envs]."""
        self._drawn: Ints = np.ones(num_envs, np.int64)
        """Number of seeds each environment has had, [num_envs]."""
        self.anchors: Ints = np.full(num_envs, -1)
        """Tick of `ticks` at whose end each environment started from its seed, [num_envs]; -1: before the first."""
        # In one piece: one long-lived array for each tick would lie scattered between the learner's large blocks, which
        # then find no room where they were and make the process grow.
        self._actions = bytearray()
        """Actions since the oldest anchor, int32 [ticks, num_envs]."""
        self._tick_bytes = 4 * num_envs

    def __len__(self) -> int:
        return len(self._actions) // self._tick_bytes

    def draw(self, envs: npt.NDArray[np.bool_]) -> Ints:
        """Next seeds of `envs` (bool [num_envs]), [num_envs]; `NO_SEED` for the others. `add` makes them count."""
        seeds = np.full(len(envs), NO_SEED)
        for env in np.flatnonzero(envs):
            entropy = (self._seed, int(env), int(self._drawn[env]))
            seeds[env] = np.random.SeedSequence(entropy).generate_state(1)[0] >> 1
        return seeds

    def due(self, over: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Which environments to seed at this tick, among those whose episodes have ended (`over`); bool [num_envs]."""
        if self._every is None:
            return np.zeros_like(over)
        return over & (len(self) - self.anchors > self._every)

    def add(self, actions: npt.NDArray[np.integer[Any]], seeds: Ints) -> None:
        """Record a finished tick: its actions, and the seeds from which environments restarted at its end."""
        seeded = seeds != NO_SEED
        self._drawn += seeded
        if self._every is None:
            return
        self._actions += actions.astype(np.int32).tobytes()
        if seeded.any():
            self.seeds[seeded] = seeds[seeded]
            self.anchors[seeded] = len(self) - 1
            past = int(self.anchors.min()) + 1
            del self._actions[: past * self._tick_bytes]
            self.anchors -= past

    def ticks(self) -> npt.NDArray[np.int32]:
        """Actions of each tick since the oldest anchor, [ticks, num_envs]."""
        # A copy, since a bytearray cannot grow while a view of it exists.
        return np.frombuffer(self._actions, np.int32).reshape(-1, len(self.seeds)).copy()

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Return what `load` needs; empty if no actions are recorded."""
        if self._every is None:
            return {}
        seed, actions = np.array(self._seed), self.ticks()
        return {"seed": seed, "seeds": self.seeds, "drawn": self._drawn, "anchor": self.anchors, "actions": actions}

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Restore a `state()`, including the seed from which all later ones are derived."""
        self._seed = int(state["seed"])
        self.seeds, self._drawn, self.anchors = (state[name].copy() for name in ("seeds", "drawn", "anchor"))
        self._actions = bytearray(state["actions"].astype(np.int32).tobytes())


def env_seeds(seed: int, num_envs: int) -> list[int]:
    """First seed of each environment: 31 bits, all distinct; that of environment e depends only on `seed` and e."""
    root = int(np.random.SeedSequence(seed).generate_state(1)[0])
    stride = 0x9E3779B1  # odd, so that no two of 2^31 environments get the same seed
    return [(root + env * stride) % 2**31 for env in range(num_envs)]
