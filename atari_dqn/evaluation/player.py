"""Epsilon-greedy play with a trained network: frames in, actions out.

Evaluations, films and clips all play through a `Player`, so that a network sees in a game what it saw in training: the
stacks of frames come from the replay's own ring, and random actions from the trainer's own `Actor`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from atari_dqn.agent.actor import Actor
from atari_dqn.envs.protocol import EnvSpec
from atari_dqn.replay.ring import FrameRing


class Player:
    """Picks an action for each of N environments from the frames that they show."""

    def __init__(
        self,
        network: torch.nn.Module,
        spec: EnvSpec,
        num_envs: int,
        *,
        epsilon: float,
        seed: int,
        device: torch.device,
    ) -> None:
        """Start with empty stacks.

        Args:
            network: Q values, float32 [N, A], of observations [N, stack, *frame_shape].
            spec: the environment that the network was trained in.
            num_envs: N.
            epsilon: probability of a random action.
            seed: of the random actions.
            device: where the network is.
        """
        self._network, self._epsilon = network, epsilon
        self._actor = Actor(lambda q: q, spec.num_actions, seed=seed)  # it acts on Q values, which films show as well
        self._ring = FrameRing(spec.stack + 2, num_envs, spec.frame_shape, spec.frame_dtype, spec.stack, 1, device)
        self._unused = np.zeros(num_envs)
        self.q = torch.empty(0)
        """Q values behind the newest actions, float32 [N, A]."""

    @property
    def explored(self) -> npt.NDArray[np.bool_]:
        """Which of the newest actions were drawn at random, [N]."""
        return self._actor.explored

    @torch.inference_mode()
    def act(self, frames: npt.NDArray[Any], last: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        """Choose the next actions.

        Args:
            frames: newest frame of each environment, [N, *frame_shape].
            last: whether that frame is the final one of its episode, [N]; the next one then starts a new stack.

        Returns:
            An action for each environment, [N].
        """
        # Only stacks are read from this ring: the other fields of a transition do not matter.
        self._ring.append(frames, last=last, actions=self._unused, rewards=self._unused, terminal=self._unused)
        self.q = self._network(self._ring.latest_observation())
        return self._actor.act(self.q, self._epsilon)
