"""Epsilon-greedy play. Flows in: one observation per env and epsilon. Flows out: one action per env, as numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Actor:
    """Picks actions by `network` (Q values [N, A] of observations [N, ...]), at random where an env explores.

    Owns its generator. Each call draws one uniform number and one random action *per env*, needed or not, so that envs
    explore independently and the stream does not depend on epsilon.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], num_actions: int, *, seed: int) -> None:
        self.network = network
        self.num_actions = num_actions
        self._rng = np.random.default_rng(seed)
        self.explored = np.zeros(0, dtype=np.bool_)
        """[N]: whose last actions were drawn at random"""

    @torch.inference_mode()
    def act(self, obs: Tensor, epsilon: float | npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
        """`obs` [N, stack, *frame_shape] on the network's device; `epsilon` one number or one per env. Returns [N]."""
        num_envs = len(obs)
        self.explored = explore = self._rng.random(num_envs) < np.broadcast_to(epsilon, num_envs)
        actions = self._rng.integers(self.num_actions, size=num_envs)
        if not explore.all():
            best = self.network(obs).argmax(1).cpu().numpy()
            actions = np.where(explore, actions, best)
        return actions

    def state(self) -> dict[str, Any]:
        """The generator's state, JSON-ready."""
        return dict(self._rng.bit_generator.state)

    def load(self, state: dict[str, Any]) -> None:
        """Continue the stream of `state()`."""
        self._rng.bit_generator.state = state
