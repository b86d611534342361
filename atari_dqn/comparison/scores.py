"""Scores of the runs of one configuration in one game, with intervals over seeds."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from atari_dqn.comparison.runs import Run
from atari_dqn.envs.ids import is_atari
from atari_dqn.evaluation.intervals import Array, Statistic, estimate, interval, iqm, median
from atari_dqn.evaluation.result import EvaluationRow

MOST_POINTS = 300
"""Points of a curve with an interval; more could not be distinguished."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval, which is NaN for a single run."""

    value: float
    low: float
    high: float


def estimated(statistic: Statistic, *samples: Array) -> Estimate:
    """`statistic` over runs with its bootstrap interval."""
    value = float(estimate(statistic, *samples))
    if max(map(len, samples)) == 1:
        return Estimate(value, math.nan, math.nan)
    low, high = interval(statistic, *samples)
    return Estimate(value, float(low), float(high))


@dataclasses.dataclass(frozen=True)
class Curve:
    """Interquartile mean over runs with its 95% interval, as four arrays [points]."""

    steps: Array
    centre: Array
    low: Array
    high: Array


def curve(runs: Sequence[Run]) -> Curve | None:
    """The curve of `runs` where all have a score, of `WINDOW` games if all have come so far.

    None for a single run, or where they have no env step in common.
    """
    if len(runs) < 2:
        return None
    full = all(run.settled < len(run.steps) for run in runs)
    first, last = max(run.steps[run.settled if full else 0] for run in runs), min(run.steps[-1] for run in runs)
    steps = np.unique(np.concatenate([run.steps for run in runs]))
    steps = steps[(steps >= first) & (steps <= last)]
    if not len(steps):
        return None
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, MOST_POINTS).round().astype(int))]
    values = np.stack([run.score_at(steps) for run in runs])
    low, high = interval(iqm, values, resamples=2000)
    return Curve(steps, estimate(iqm, values), low, high)


def end_of(runs: Sequence[Run]) -> int:
    """The env step up to which all `runs` have been trained."""
    return min(int(run.steps[-1]) for run in runs)


def final_scores(runs: Sequence[Run]) -> npt.NDArray[np.float64]:
    """Raw training scores at `end_of(runs)`, [runs]."""
    return np.array([float(run.score_at(np.array(end_of(runs)))) for run in runs])


def times_to(threshold: float, runs: Sequence[Run]) -> tuple[int, list[Estimate]]:
    """How many of `runs` reached `threshold`, and medians of the env steps, seconds and games it took.

    A run that never reached it counts as infinitely late.
    """
    reached = np.array([run.reached(threshold) for run in runs])
    return int(np.isfinite(reached[:, 0]).sum()), [estimated(median, column) for column in reached.T]


@dataclasses.dataclass(frozen=True)
class Point:
    """Evaluations under the same conditions at about the same env step, of one run or of several together."""

    conditions: tuple[str, float]
    """Protocol (empty for environments other than Atari games) and epsilon."""
    env_step: float
    score: Estimate
    """The mean over games for one run, the interquartile mean of those means for several."""
    runs: int
    """Number of runs."""


def evaluation_points(runs: Sequence[Run]) -> list[Point]:
    """All evaluations of `runs` (of one game), sorted by conditions in the order first met, then by env step.

    Evaluations are combined where every run has one, at most as many env steps apart as there are environments. All
    others stay separate, each with the interval of its mean over games.
    """
    alike: dict[tuple[str, float], list[tuple[int, EvaluationRow]]] = {}
    for index, run in enumerate(runs):
        for row in run.evaluations:
            conditions = (row["protocol"] if is_atari(run.env_id) else "", row["epsilon"])
            alike.setdefault(conditions, []).append((index, row))
    points: list[Point] = []
    for conditions, evaluations in alike.items():
        evaluations.sort(key=lambda each: (each[1]["env_step"], each[0]))
        while evaluations:
            last = evaluations[0][1]["env_step"] + max(run.config.num_envs for run in runs)
            close = [each for each in evaluations if each[1]["env_step"] <= last]
            del evaluations[: len(close)]
            rows = [row for _, row in close]
            by_run = [[row["mean"] for index, row in close if index == wanted] for wanted in range(len(runs))]
            if len(runs) > 1 and all(by_run):
                step = float(np.mean([row["env_step"] for row in rows]))
                score = estimated(iqm, np.array([np.mean(means) for means in by_run]))
                points.append(Point(conditions, step, score, len(runs)))
            else:
                points += [Point(conditions, row["env_step"], Estimate(row["mean"], *row["ci95"]), 1) for row in rows]
    return points
