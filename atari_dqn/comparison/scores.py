"""Scores of the runs of one configuration, with intervals over seeds.

The statistics are those of `evaluation.intervals`: interquartile means, and intervals by stratified bootstrap.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from atari_dqn.comparison.runs import Configuration, Run
from atari_dqn.envs.ids import is_atari
from atari_dqn.evaluation.intervals import Array, Statistic, estimate, interval, iqm, median
from atari_dqn.evaluation.references import human_normalized
from atari_dqn.evaluation.result import EvaluationRow

MOST_POINTS = 300
"""Points of a curve with an interval; more could not be distinguished."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number with its 95% interval, which is NaN for a single run."""

    value: float
    low: float
    high: float


def estimated(statistic: Statistic, *strata: Array) -> Estimate:
    """`statistic` over runs, one stratum for each game, with its stratified bootstrap interval."""
    value = float(estimate(statistic, *strata))
    if max(map(len, strata)) == 1:
        return Estimate(value, math.nan, math.nan)
    low, high = interval(statistic, *strata)
    return Estimate(value, float(low), float(high))


@dataclasses.dataclass(frozen=True)
class Curve:
    """Interquartile mean over runs with its 95% interval, as four arrays [points]."""

    steps: Array
    centre: Array
    low: Array
    high: Array


def curve(runs: Sequence[Run]) -> Curve | None:
    """The curve of `runs` where all have a score; None for a single run, or where they have no env step in common."""
    if len(runs) < 2:
        return None
    first, last = max(run.steps[0] for run in runs), min(run.steps[-1] for run in runs)
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


def normalized_scores(runs: Sequence[Run]) -> npt.NDArray[np.float64] | None:
    """`final_scores`, human-normalised; None when no reference is known."""
    scores = [human_normalized(runs[0].env_id, score) for score in final_scores(runs)]
    return None if None in scores else np.array(scores, dtype=np.float64)


def shared_games(found: Sequence[Configuration]) -> list[str]:
    """Games with known human references that every configuration was trained on."""
    env_ids = dict.fromkeys(run.env_id for configuration in found for run in configuration.runs)
    return [
        env_id
        for env_id in env_ids
        if human_normalized(env_id, 0.0) is not None and all(each.trained(env_id) for each in found)
    ]


def times_to(threshold: float, runs: Sequence[Run]) -> tuple[int, list[Estimate]]:
    """How many of `runs` reached `threshold`, and medians of the env steps, seconds and games it took.

    A run that never reached it counts as infinitely late.
    """
    reached = np.array([run.reached(threshold) for run in runs])
    return int(np.isfinite(reached[:, 0]).sum()), [estimated(median, column) for column in reached.T]


# ---------------------------------------------------------------------- evaluations


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
    found: list[Point] = []
    rows = [
        ((row["protocol"] if is_atari(run.env_id) else "", row["epsilon"]), row["env_step"], index, row)
        for index, run in enumerate(runs)
        for row in run.evaluations
    ]
    first = {conditions: index for index, (conditions, *_) in reversed(list(enumerate(rows)))}
    rows.sort(key=lambda entry: (first[entry[0]], *entry[1:3]))
    for conditions, alike in itertools.groupby(rows, key=lambda entry: entry[0]):
        for together in _close(list(alike), max(run.config.num_envs for run in runs)):
            by_run: dict[int, list[EvaluationRow]] = {}
            for *_, index, row in together:
                by_run.setdefault(index, []).append(row)
            if len(runs) > 1 and len(by_run) == len(runs):
                means = np.array([np.mean([row["mean"] for row in of_run]) for of_run in by_run.values()])
                step = float(np.mean([entry[1] for entry in together]))
                found.append(Point(conditions, step, estimated(iqm, means), len(runs)))
            else:
                found.extend(
                    Point(conditions, row["env_step"], Estimate(row["mean"], *row["ci95"]), 1) for *_, row in together
                )
    return found


def _close(rows: list[Any], apart: int) -> list[list[Any]]:
    """Split rows, sorted by env step (their second element), into groups that span at most `apart` env steps."""
    groups: list[list[Any]] = []
    for row in rows:
        if groups and row[1] - groups[-1][0][1] <= apart:
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups
