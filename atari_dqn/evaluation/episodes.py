"""Scores of whole games: step results flow in, raw returns and lengths of finished episodes flow out."""

from __future__ import annotations

import collections
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from atari_dqn.evaluation.references import WINDOW
from atari_dqn.workers.pool import StepResult


class Episode(NamedTuple):
    """A finished game."""

    episode: int
    """from 1 on, in the order in which they ended"""
    env: int
    raw_return: float
    length: int
    """env steps"""


class EpisodeStatistics:
    """Adds up raw rewards and env steps of every env until its game is over; a lost life ends nothing here."""

    def __init__(self, num_envs: int) -> None:
        self._return = np.zeros(num_envs)
        self._length = np.zeros(num_envs, dtype=np.int64)
        self.returns: collections.deque[float] = collections.deque(maxlen=WINDOW)
        self.lengths: collections.deque[int] = collections.deque(maxlen=WINDOW)
        self.finished = 0

    def add(self, step: StepResult) -> list[Episode]:
        """Count one tick of all envs; a reset tick counts nothing. Returns the games that ended."""
        ended = []
        self._return += step.raw_rewards
        self._length += ~step.is_reset
        for env in np.flatnonzero(step.terminated | step.truncated):
            self.finished += 1
            game = Episode(self.finished, int(env), float(self._return[env]), int(self._length[env]))
            self.returns.append(game.raw_return)
            self.lengths.append(game.length)
            ended.append(game)
            self._return[env] = self._length[env] = 0
        return ended

    def abandon(self, envs: npt.NDArray[np.bool_]) -> None:
        """Forget the unfinished games of `envs` (bool [num_envs]), which begin anew."""
        self._return[envs] = self._length[envs] = 0

    def metrics(self) -> dict[str, float]:
        """`charts/episodic_return` and `charts/episodic_length`, means over the last games; empty before the first."""
        if not self.returns:
            return {}
        return {
            "charts/episodic_return": float(np.mean(self.returns)),
            "charts/episodic_length": float(np.mean(self.lengths)),
            "charts/episodes": float(self.finished),
        }

    def state(self) -> dict[str, Any]:
        return {
            "return": self._return.tolist(),
            "length": self._length.tolist(),
            "returns": list(self.returns),
            "lengths": list(self.lengths),
            "finished": self.finished,
        }

    def load(self, state: dict[str, Any]) -> None:
        self._return[:], self._length[:] = state["return"], state["length"]
        self.returns.extend(state["returns"])
        self.lengths.extend(state["lengths"])
        self.finished = state["finished"]
