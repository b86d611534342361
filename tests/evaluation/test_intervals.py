"""Interquartile means, probabilities and intervals, against scipy, closed forms and slow references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from atari_dqn.evaluation import intervals
from atari_dqn.evaluation.intervals import (
    Array,
    Statistic,
    estimate,
    improvement,
    interval,
    iqm,
    mean,
    median,
    median_of_means,
)

few = st.lists(st.integers(-5, 5).map(float), min_size=1, max_size=9).map(np.array)
games = st.lists(few, min_size=1, max_size=6)


# ---------------------------------------------------------------------- statistics


@given(few)
def test_the_interquartile_mean_is_scipys_trimmed_mean(runs: Array) -> None:
    assert estimate(iqm, runs) == pytest.approx(stats.trim_mean(runs, 0.25))


def test_an_outlier_moves_the_mean_and_not_the_interquartile_mean() -> None:
    runs = np.array([10.0, 11.0, 12.0, 1e6])
    assert estimate(iqm, runs) == 11.5
    assert estimate(mean, runs) > 1e5


@given(games)
def test_aggregates_over_games_are_those_of_their_definitions(scores: list[Array]) -> None:
    """Agarwal et al. 2021: median and mean of the games' means; the IQM of all runs, as scipy trims them."""
    each = sorted(sum(runs) / len(runs) for runs in scores)
    middle = (each[(len(each) - 1) // 2] + each[len(each) // 2]) / 2
    assert estimate(median_of_means, *scores) == pytest.approx(middle)
    assert estimate(mean, *scores) == pytest.approx(sum(each) / len(each))
    assert estimate(iqm, *scores) == pytest.approx(stats.trim_mean(np.concatenate(scores), 0.25))


@given(few, few)
def test_the_probability_of_improvement_is_mann_whitneys_u_over_all_pairs(x: Array, y: Array) -> None:
    twin = sum(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in itertools.product(x, y)) / (len(x) * len(y))
    assert estimate(improvement, x, y) == pytest.approx(twin)
    assert estimate(improvement, x, y) == pytest.approx(stats.mannwhitneyu(x, y).statistic / (len(x) * len(y)))
    assert estimate(improvement, x, y) + estimate(improvement, y, x) == pytest.approx(1)


def test_a_run_that_never_reached_a_score_counts_as_infinitely_late() -> None:
    assert estimate(median, np.array([3.0, np.inf, 5.0])) == 5.0
    assert estimate(median, np.array([3.0, np.inf, np.inf])) == np.inf
    low, high = interval(median, np.array([3.0, np.inf, 5.0]))
    assert (low, high) == (3.0, np.inf)


# ---------------------------------------------------------------------- intervals


def test_the_interval_of_a_mean_agrees_with_the_normal_approximation() -> None:
    scores = np.random.default_rng(0).normal(50, 10, 1000)
    low, high = interval(mean, scores, seed=1)
    half = 1.96 * scores.std() / np.sqrt(len(scores))
    assert low == pytest.approx(scores.mean() - half, abs=0.06 * half)
    assert high == pytest.approx(scores.mean() + half, abs=0.06 * half)


def test_an_interval_depends_only_on_its_seed() -> None:
    scores = np.random.default_rng(0).exponential(10, 30)
    first = interval(mean, scores, seed=1)
    np.random.default_rng(5).random()
    assert interval(mean, scores, seed=1) == first != interval(mean, scores, seed=2)
    assert interval(mean, np.array([4.0])) == (4.0, 4.0)


@pytest.mark.parametrize("statistic", [improvement, iqm, mean, median_of_means])
def test_the_interval_of_few_runs_is_that_of_all_possible_resamples_of_each_sample(statistic: Statistic) -> None:
    x, y = np.array([0.0, 1.0, 5.0]), np.array([4.0, 0.5])
    every = [
        estimate(statistic, np.array(a), np.array(b))
        for a in itertools.product(x, repeat=3)
        for b in itertools.product(y, repeat=2)
    ]
    low, high = interval(statistic, x, y, resamples=100_000)
    assert (low, high) == pytest.approx(tuple(np.percentile(every, (2.5, 97.5), method="inverted_cdf")))


def test_intervals_agree_with_scipys() -> None:
    scores = np.random.default_rng(3).exponential(10, 40)
    theirs = stats.bootstrap(
        (scores,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), method="percentile", rng=0
    ).confidence_interval  # fmt: skip
    width = theirs.high - theirs.low
    assert interval(iqm, scores) == pytest.approx((theirs.low, theirs.high), abs=0.04 * width)


def test_a_run_is_resampled_with_its_whole_curve() -> None:
    curves = np.array([[0.0, 10.0, 3.0], [10.0, 0.0, 3.0]])
    together = interval(lambda runs: runs.mean(axis=1).sum(axis=1), curves)
    assert together == (13.0, 13.0), "whichever run is drawn, its points add up to 13"
    low, high = interval(mean, curves)
    np.testing.assert_array_equal([low, high], [[0, 0, 3], [10, 10, 3]])


def test_drawing_in_parts_makes_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def watched(runs: Array) -> Array:
        shapes.append(runs.shape)
        return np.asarray(runs.mean(axis=1))

    monkeypatch.setattr(intervals, "MOST_NUMBERS", 700)
    interval(watched, np.arange(10.0), resamples=150)
    assert shapes == [(70, 10), (70, 10), (10, 10)]
