"""Statistics of few games or few runs: interquartile means, probabilities of improvement, bootstrap intervals.

The methods are those of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
A stratum is an array [n, ...] with the runs of one game, or the games of one evaluation. A statistic takes resampled
strata, each [resamples, n_i, ...], and reduces axis 1. Resamples are drawn within each stratum, so that each keeps its
weight; intervals are percentiles of the resampled statistic (Efron 1979). Nothing here imports torch.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Statistic = Callable[..., Array]

RESAMPLES = 10_000
"""Number of resamples of an interval."""
MOST_NUMBERS = 1_000_000
"""Numbers drawn at a time: 10,000 resamples of 100,000 games would need 8 GB."""


def iqm(*strata: Array) -> Array:
    """Interquartile mean of all strata together: the lowest and the highest quarter, rounded down, do not count."""
    ordered = np.sort(np.concatenate(strata, axis=1), axis=1)
    cut = ordered.shape[1] // 4
    return np.asarray(ordered[:, cut : ordered.shape[1] - cut].mean(axis=1))


def mean(*strata: Array) -> Array:
    """Mean over the strata of their means."""
    return np.asarray(np.mean([stratum.mean(axis=1) for stratum in strata], axis=0))


def median(*strata: Array) -> Array:
    """Median over the strata of their means; the median of a single stratum. Infinity stands for "never"."""
    if len(strata) == 1:
        return np.asarray(np.median(strata[0], axis=1))
    return np.asarray(np.median([stratum.mean(axis=1) for stratum in strata], axis=0))


def optimality_gap(*strata: Array) -> Array:
    """Average amount by which all strata together fall short of 1; scores above 1 count as 1."""
    return np.asarray(1 - np.minimum(np.concatenate(strata, axis=1), 1).mean(axis=1))


def improvement(*strata: Array) -> Array:
    """P(X > Y) for one run of each, averaged over games; ties count half (Mann-Whitney's U / nm).

    The strata are X's games, then Y's.
    """
    games = len(strata) // 2
    pairs = [x[:, :, None] - y[:, None, :] for x, y in zip(strata[:games], strata[games:], strict=True)]
    return np.asarray(np.mean([((pair > 0) + 0.5 * (pair == 0)).mean(axis=(1, 2)) for pair in pairs], axis=0))


def profile(levels: Array) -> Statistic:
    """The statistic "share of all runs above each of `levels`", [resamples, len(levels)]."""

    def above(*strata: Array) -> Array:
        ordered = np.concatenate(strata, axis=1)
        return np.stack([(ordered > level).mean(axis=1) for level in levels], axis=1)

    return above


def estimate(statistic: Statistic, *strata: Array) -> Array:
    """The statistic of the strata themselves, without an axis of resamples."""
    return np.asarray(statistic(*(stratum[None] for stratum in strata))[0])


def interval(
    statistic: Statistic, *strata: Array, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """95% stratified percentile-bootstrap interval of `statistic`: (low, high), each of the statistic's shape."""
    generator = np.random.default_rng(seed)
    at_once = max(1, MOST_NUMBERS // sum(stratum.size for stratum in strata))
    values = []
    for done in range(0, resamples, at_once):
        size = min(at_once, resamples - done)
        values.append(statistic(*(generator.choice(stratum, (size, len(stratum))) for stratum in strata)))
    # No interpolation between resamples: where runs never reached a score it would be infinity minus infinity.
    low, high = np.percentile(np.concatenate(values), (2.5, 97.5), axis=0, method="inverted_cdf")
    return np.asarray(low), np.asarray(high)
