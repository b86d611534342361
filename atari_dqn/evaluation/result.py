"""Result of an evaluation: scores of whole games, their statistics, and their row in evaluations.jsonl."""

import dataclasses
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

from atari_dqn.envs.ids import is_atari
from atari_dqn.envs.protocol import Protocol
from atari_dqn.evaluation.intervals import estimate, iqm
from atari_dqn.evaluation.references import human_normalized


class EvaluationRow(TypedDict):
    """What a reader can rely on in a row of `evaluations.jsonl`."""

    env_step: int
    """Env steps of training behind the network."""
    protocol: str
    epsilon: float
    mean: float
    ci95: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Scores of whole games, those of env 0 first, each env's in the order played."""

    env_id: str
    protocol: Protocol
    epsilon: float
    seed: int
    returns: npt.NDArray[np.float64]
    """Raw scores, [episodes]."""
    lengths: npt.NDArray[np.int64]
    """Env steps, [episodes]."""
    cut: int
    """Number of games ended by a time limit."""
    ci95: tuple[float, float]
    """95% percentile-bootstrap interval of the mean; `iqm_ci95` that of the interquartile mean."""
    iqm_ci95: tuple[float, float]
    seconds: float
    """Wall time."""

    @property
    def mean(self) -> float:
        return float(self.returns.mean())

    @property
    def median(self) -> float:
        return float(np.median(self.returns))

    @property
    def iqm(self) -> float:
        """Interquartile mean: the mean of the middle half of the games."""
        return float(estimate(iqm, self.returns))

    @property
    def human_normalized(self) -> float | None:
        return human_normalized(self.env_id, self.mean)

    def summary(self) -> str:
        """One line for the user."""
        (low, high), human = self.ci95, self.human_normalized
        normalized = "" if human is None else f", human-normalised {human:.3f}"
        protocol = f", {self.protocol.name}" if is_atari(self.env_id) else ""
        return (
            f"mean {self.mean:.2f} (95% interval {low:.2f} to {high:.2f}), median {self.median:g}{normalized};"
            f" {len(self.returns)} games{protocol}, epsilon {self.epsilon:g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """A row of `evaluations.jsonl` without its `env_step`; `time` is in seconds."""
        return {
            "env_id": self.env_id,
            "protocol": self.protocol.name,
            "full_action_space": self.protocol.full_action_space,
            "epsilon": self.epsilon,
            "episodes": len(self.returns),
            "mean": self.mean,
            "median": self.median,
            "ci95": list(self.ci95),
            "iqm": self.iqm,
            "iqm_ci95": list(self.iqm_ci95),
            "human_normalized": self.human_normalized,
            "returns": self.returns.tolist(),
            "lengths": self.lengths.tolist(),
            "truncated": self.cut,
            "seed": self.seed,
            "time": round(self.seconds, 3),
        }
