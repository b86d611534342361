"""Epsilon-greedy actions for all envs at once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


class Actor:
    """Actions by the Q values [N, A] of `network`, or random ones where an env explores.

    It owns its generator. Each call draws one uniform number and one random action per env, even if not needed, so that
    envs explore independently and the stream does not depend on epsilon.
    """

    def __init__(self, network: Callable[[Tensor], Tensor], num_actions: int, *, seed: int) -> None:
        self.network = network
        self.num_actions = num_actions
        self._rng = np.random.default_rng(seed)
        self.explored = np.zeros(0, dtype=np.bool_)
        """Whether each env's last action was random, [N]."""

    @torch.inference_mode()
    def act(self, obs: Tensor, epsilon: float | npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
        """Actions, int64 [N], for `obs` [N, stack, *frame_shape] on the network's device.

        `epsilon` is the probability of a random action, one for all envs or one per env, [N].
        """
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
