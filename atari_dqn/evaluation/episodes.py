"""Episode counting: raw returns and lengths of finished games, and their means over the last hundred."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.step import StepResult

WINDOW = 100
"""Number of games in a mean score of training, by the field's convention."""


class Episode(NamedTuple):
    """A finished game."""

    episode: int
    """Number of the game: 1 for the first that ended."""
    env: int
    """Index of its environment."""
    raw_return: float
    """Sum of its raw rewards."""
    length: int
    """Environment steps from its reset to its end."""


class EpisodeCounter:
    """Sums raw rewards and environment steps of every environment until its game is over.

    A lost life does not end a game, and a reset tick is not an environment step.
    """

    def __init__(self, num_envs: int) -> None:
        self.finished = 0
        """Number of games that ended."""
        self.running_returns = np.zeros(num_envs)
        """Raw return so far of each unfinished game, [num_envs]."""
        self.running_lengths = np.zeros(num_envs, dtype=np.int64)
        """Environment steps so far of each unfinished game, [num_envs]."""

    def add(self, step: StepResult) -> list[Episode]:
        """Count one tick of all environments. Returns the games that ended with it."""
        ended = []
        self.running_returns += step.raw_rewards
        self.running_lengths += ~step.is_reset
        for env in np.flatnonzero(step.terminated | step.truncated):
            self.finished += 1
            score, length = float(self.running_returns[env]), int(self.running_lengths[env])
            ended.append(Episode(self.finished, int(env), score, length))
            self.running_returns[env] = self.running_lengths[env] = 0
        return ended

    def abandon(self, envs: npt.NDArray[np.bool_]) -> None:
        """Discard the unfinished games of `envs` (bool [num_envs]), which start over."""
        self.running_returns[envs] = self.running_lengths[envs] = 0


class EpisodeStatistics(EpisodeCounter):
    """Counts the games of a training, with running means over the last `WINDOW` of them."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.returns: collections.deque[float] = collections.deque(maxlen=WINDOW)
        """Raw returns of the last games, oldest first."""
        self.lengths: collections.deque[int] = collections.deque(maxlen=WINDOW)
        """Environment steps of the same games."""

    def add(self, step: StepResult) -> list[Episode]:
        """Count one tick of all environments. Returns the games that ended with it."""
        ended = super().add(step)
        self.returns.extend(game.raw_return for game in ended)
        self.lengths.extend(game.length for game in ended)
        return ended

    def metrics(self) -> dict[str, float]:
        """Mean return and length over the last games, and the number of games; empty before the first has ended."""
        if not self.returns:
            return {}
        return {
            "charts/episodic_return": float(np.mean(self.returns)),
            "charts/episodic_length": float(np.mean(self.lengths)),
            "charts/episodes": float(self.finished),
        }

    def state(self) -> dict[str, Any]:
        """All that `load` needs, JSON-ready."""
        return {
            "return": self.running_returns.tolist(),
            "length": self.running_lengths.tolist(),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "finished": self.finished,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a `state()`."""
        self.running_returns[:], self.running_lengths[:] = state["return"], state["length"]
        self.returns.extend(state["returns"])
        self.lengths.extend(state["lengths"])
        self.finished = state["finished"]
