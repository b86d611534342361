"""Episode counting: raw returns and lengths of finished games, and their means over the last hundred."""

import collections
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.step import StepResult

WINDOW = 100
"""Number of games in a mean score of training, by the field's convention."""


class Episode(NamedTuple):
    """A finished game: its number, from 1, its environment, its raw score and its length in env steps."""

    episode: int
    env: int
    raw_return: float
    length: int


class EpisodeStatistics:
    """Sums raw rewards and env steps of each game, with running means over the last `WINDOW` games.

    A lost life does not end a game, and a reset tick is not an env step.
    """

    def __init__(self, num_envs: int) -> None:
        self.finished = 0
        self.returns: collections.deque[float] = collections.deque(maxlen=WINDOW)
        """Raw returns of the last games, oldest first; `lengths` are their env steps."""
        self.lengths: collections.deque[int] = collections.deque(maxlen=WINDOW)
        self._running_returns = np.zeros(num_envs)
        self._running_lengths = np.zeros(num_envs, dtype=np.int64)

    def add(self, step: StepResult) -> list[Episode]:
        """Count one tick of all environments, and return the games that ended with it."""
        ended = []
        self._running_returns += step.raw_rewards
        self._running_lengths += ~step.is_reset
        for env in np.flatnonzero(step.terminated | step.truncated):
            self.finished += 1
            score, length = float(self._running_returns[env]), int(self._running_lengths[env])
            ended.append(Episode(self.finished, int(env), score, length))
            self.returns.append(score)
            self.lengths.append(length)
            self._running_returns[env] = self._running_lengths[env] = 0
        return ended

    def abandon(self, envs: npt.NDArray[np.bool_]) -> None:
        """Discard the unfinished games of `envs`, bool [num_envs]."""
        self._running_returns[envs] = self._running_lengths[envs] = 0

    def metrics(self) -> dict[str, float]:
        """Mean return and length of the last games, and the number of all; empty before the first has ended."""
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
            "return": self._running_returns.tolist(),
            "length": self._running_lengths.tolist(),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "finished": self.finished,
        }

    def load(self, state: dict[str, Any]) -> None:
        self._running_returns[:], self._running_lengths[:] = state["return"], state["length"]
        self.returns.extend(state["returns"])
        self.lengths.extend(state["lengths"])
        self.finished = state["finished"]
