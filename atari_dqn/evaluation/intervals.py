"""Statistics of few games or few runs: interquartile means, probabilities of improvement, bootstrap intervals.

The methods are those of Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice".
A sample is an array [n, ...] with the runs of one game, or the games of one evaluation. A statistic takes resampled
samples, each [resamples, n, ...], and reduces axis 1. Of several samples each is resampled by itself (a bootstrap
stratified by game). Intervals are percentiles of the resampled statistic (Efron 1979). Nothing here imports torch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Statistic = Callable[..., Array]

RESAMPLES = 10_000
"""Number of resamples of an interval."""
MOST_NUMBERS = 1_000_000
"""Numbers drawn at a time: 10,000 resamples of 100,000 games would need 8 GB."""


def iqm(*samples: Array) -> Array:
    """Interquartile mean of all samples together: the lowest and the highest quarter, rounded down, do not count."""
    scores = np.sort(np.concatenate(samples, axis=1), axis=1)
    cut = scores.shape[1] // 4
    return np.asarray(scores[:, cut : scores.shape[1] - cut].mean(axis=1))


def mean(*samples: Array) -> Array:
    """Mean of the samples' means."""
    return np.asarray(means(samples).mean(axis=0))


def median_of_means(*samples: Array) -> Array:
    return np.asarray(np.median(means(samples), axis=0))


def means(samples: Sequence[Array]) -> Array:
    """Mean of each sample, [samples, resamples, ...]."""
    return np.stack([sample.mean(axis=1) for sample in samples])


def median(times: Array) -> Array:
    """Infinity stands for "never"."""
    return np.asarray(np.median(times, axis=1))


def improvement(x: Array, y: Array) -> Array:
    """P(X > Y) for one run of each; ties count half (Mann-Whitney's U / nm)."""
    pairs = x[:, :, None] - y[:, None, :]
    return np.asarray(((pairs > 0) + 0.5 * (pairs == 0)).mean(axis=(1, 2)))


def estimate(statistic: Statistic, *samples: Array) -> Array:
    """The statistic of the samples themselves, without an axis of resamples."""
    return np.asarray(statistic(*(sample[None] for sample in samples))[0])


def interval(
    statistic: Statistic, *samples: Array, seed: int = 0, resamples: int = RESAMPLES
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """95% percentile-bootstrap interval of `statistic`: (low, high), each of the statistic's shape."""
    generator = np.random.default_rng(seed)
    at_once = max(1, MOST_NUMBERS // sum(sample.size for sample in samples))
    values = []
    for done in range(0, resamples, at_once):
        size = min(at_once, resamples - done)
        values.append(statistic(*(generator.choice(sample, (size, len(sample))) for sample in samples)))
    # No interpolation between resamples: where runs never reached a score it would be infinity minus infinity.
    low, high = np.percentile(np.concatenate(values), (2.5, 97.5), axis=0, method="inverted_cdf")
    return np.asarray(low), np.asarray(high)
