"""Seeds: one for each consumer of random numbers, so that none disturbs another."""

from __future__ import annotations

import numpy as np

CONSUMERS = ("network", "replay", "actor", "envs", "evaluation")


def seeds_of(root: int) -> dict[str, int]:
    """Independent seeds for the `CONSUMERS` of a training whose setting `seed` is `root`."""
    return {name: branch_of(root, index) for index, name in enumerate(CONSUMERS)}


def branch_of(root: int, branch: int) -> int:
    """A 31-bit seed derived from `root`; different branches are independent."""
    return int(np.random.SeedSequence((root, branch)).generate_state(1)[0] >> 1)
