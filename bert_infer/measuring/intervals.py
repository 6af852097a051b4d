"""How far repeated timings pin a figure down: confidence intervals of means, medians and ratios.

Pure functions of arrays. Where there are too few samples to answer a question, they return None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FEWEST_FOR_INTERVAL = 6
"""With fewer, even the extremes of the samples bracket a median less often than 95 %."""
FEWEST_PAIRS = 3
"""Fewest pairs for an interval of their typical ratio."""
FEWEST_TO_STOP = 20
"""Fewest samples after which an interval may decide that they are enough."""
FEWEST_FOR_AUTOCORRELATION = 20
"""Fewest samples in which autocorrelation can be told from chance."""
_CERTAIN_OF_ONE_SIDE = 1.64  # standard errors
_RESAMPLES = 2000
_FEWEST_RESAMPLES = 200
_RESAMPLED_VALUES = 20_000_000  # a bound on the bootstrap's work: about a second
_AT_ONCE = 100_000  # values in memory at once: it is the run's, whose peak is measured
_LARGEST_AUTOCORRELATION = 0.95  # as much as so few samples can tell
_MANY = 10_000  # from so many samples on, order statistics or means of neighbours tell as much


class Interval(NamedTuple):
    """A confidence interval, both ends included."""

    low: float
    high: float

    def includes(self, value: float) -> bool:
        """Tell whether ``value`` lies in it."""
        return self.low <= value <= self.high

    def over(self, amount: float) -> Interval:
        """Return the interval of ``amount / x``, where this is the interval of ``x``."""
        return Interval(amount / self.high, amount / self.low)

    def times(self, factor: float) -> Interval:
        """Return the interval of ``factor * x``, where this is the interval of ``x``."""
        return Interval(factor * self.low, factor * self.high)

    def widened(self, middle: float, factor: float) -> Interval:
        """Return an interval with ends ``factor`` times as far from ``middle``, on a log scale."""
        return Interval(
            middle * (self.low / middle) ** factor, middle * (self.high / middle) ** factor
        )


def of_mean(samples: NDArray[np.float64], confidence: float = 0.95) -> Interval | None:
    """Return a bootstrap confidence interval of the mean, or None for too few samples.

    For very many samples, means of neighbours are resampled: they have the same mean.

    Args:
        samples: ``[samples]``; ``FEWEST_FOR_INTERVAL`` at the least.
        confidence: how often the interval is to hold the truth.
    """
    return _bootstrap(_thinned(samples)[:, None], np.mean, confidence)


def of_median(samples: NDArray[np.float64], confidence: float = 0.95) -> Interval | None:
    """Return a confidence interval of the median, or None for too few samples.

    By bootstrap; for very many single values by the order statistics that bracket the median, in
    the normal approximation to the binomial distribution.

    Args:
        samples: ``[samples, values]``; whole rows are resampled, the median is of all values.
        confidence: how often the interval is to hold the truth.
    """
    if samples.size == len(samples) > _MANY:
        from scipy import stats

        half = stats.norm.ppf((1 + confidence) / 2) / 2 / np.sqrt(samples.size)
        low, middle, high = map(float, np.quantile(samples, [0.5 - half, 0.5, 0.5 + half]))
        return Interval(low, high).widened(middle, _widening(samples[:, 0]))
    return _bootstrap(samples, np.median, confidence)


def _bootstrap(
    rows: NDArray[np.float64], statistic: Callable[..., NDArray[np.float64]], confidence: float
) -> Interval | None:
    """Resample whole rows of ``[samples, values]``; the statistic sees all their values.

    Percentiles of the resampled statistic, at a level widened for small samples as Hesterberg
    advises (What Teachers Should Know About the Bootstrap, 2015, section 5.2): plain percentiles,
    and BCa, cover 95 % only 88 to 91 % of the time for ten timings. Autocorrelated rows tell less
    than as many independent ones, so they widen the interval further.
    """
    count = len(rows)
    if count < FEWEST_FOR_INTERVAL:
        return None
    if np.ptp(rows) == 0:
        return Interval(float(rows[0, 0]), float(rows[0, 0]))
    from scipy import stats

    def of_rows(chosen: NDArray[np.int64], axis: int) -> NDArray[np.float64]:
        del axis  # scipy always means the last one
        return statistic(rows[chosen].reshape(*chosen.shape[:-1], -1), axis=-1)

    found = stats.bootstrap(
        (np.arange(count),),
        of_rows,
        n_resamples=_resamples(rows.size),
        batch=max(1, _AT_ONCE // rows.size),
        confidence_level=_widened(count, confidence),
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),  # the same samples give the same interval
    ).confidence_interval
    middle = float(statistic(rows.ravel(), axis=-1))
    return Interval(float(found.low), float(found.high)).widened(
        middle, _widening(rows.mean(axis=1))
    )


def verdict(interval: Interval | None) -> str:
    """Return what an interval of a ratio of speeds supports saying."""
    if interval is None:
        return f"too few samples (at least {FEWEST_FOR_INTERVAL})"
    if interval.low > 1:
        return f"faster by {interval.low - 1:.1%} to {interval.high - 1:.1%}"
    if interval.high < 1:
        return f"slower by {1 - interval.high:.1%} to {1 - interval.low:.1%}"
    return "no difference shown"


def of_ratio(
    over: NDArray[np.float64], under: NDArray[np.float64], confidence: float = 0.95
) -> Interval | None:
    """Return the bootstrap interval of ``mean(over) / mean(under)``, two independent samples.

    Widened for the smaller sample, as the other intervals are; None where that is too small.

    Args:
        over: ``[samples]``.
        under: ``[other samples]``.
        confidence: how often the interval is to hold the truth.
    """
    over, under = (_thinned(samples) for samples in (over, under))
    fewest = min(len(over), len(under))
    if fewest < FEWEST_FOR_INTERVAL:
        return None
    from scipy import stats

    found = stats.bootstrap(
        (over, under),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        n_resamples=_resamples(len(over) + len(under)),
        batch=max(1, _AT_ONCE // (len(over) + len(under))),
        confidence_level=_widened(fewest, confidence),
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(found.low), float(found.high)).widened(
        float(over.mean() / under.mean()), max(_widening(over), _widening(under))
    )


def geometric_mean(ratios: NDArray[np.float64]) -> float:
    """Return the typical one of ``ratios``; that of their inverses is its inverse."""
    return float(np.exp(np.log(ratios).mean()))


def of_paired_ratio(ratios: NDArray[np.float64], confidence: float) -> Interval:
    """Return the interval of the typical one of ``ratios``, by Student's t on their logarithms.

    Args:
        ratios: ``[pairs]``, at least 2, each of two things measured one right after the other.
        confidence: how often the interval is to hold the truth.
    """
    from scipy import stats

    logs = np.log(ratios)
    half = stats.t.ppf((1 + confidence) / 2, len(logs) - 1) * stats.sem(logs)
    return Interval(float(np.exp(logs.mean() - half)), float(np.exp(logs.mean() + half)))


def _thinned(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return means of neighbours, ``_MANY`` at most; fewer samples stay as they are."""
    size = max(1, -(-len(samples) // _MANY))
    means: NDArray[np.float64] = samples[: len(samples) // size * size].reshape(-1, size).mean(1)
    return means


def autocorrelation(samples: NDArray[np.float64]) -> float | None:
    """Return the correlation of each sample with the one before, where it is more than chance.

    That is more than 1.64 standard errors of independent samples', 1 / sqrt(n): 1 to 3 of a hundred
    such runs have that. Where the correlation is r, what is found is r - (1 + 4 r) / n on average
    (Kendall, 1954), which is corrected for. None for few samples, or for samples no more alike than
    independent ones.
    """
    count = len(samples)
    if count < FEWEST_FOR_AUTOCORRELATION or np.ptp(samples) == 0:
        return None
    far = samples - samples.mean()
    found = float((far[1:] @ far[:-1]) / (far @ far))
    if found < _CERTAIN_OF_ONE_SIDE / np.sqrt(count):
        return None
    return min((count * found + 1) / (count - 4), _LARGEST_AUTOCORRELATION)


def _widening(samples: NDArray[np.float64]) -> float:
    """Return how much wider a mean's interval is than if samples were independent.

    By the effective number of samples where each depends on the one before and no other (Bayley and
    Hammersley, 1946).
    """
    found = autocorrelation(samples) or 0.0
    return float(np.sqrt((1 + found) / (1 - found)))


def _resamples(values: int) -> int:
    """Return how often to resample so many values."""
    return int(np.clip(_RESAMPLED_VALUES // values, _FEWEST_RESAMPLES, _RESAMPLES))


def _widened(count: int, confidence: float) -> float:
    """Return the level at which a bootstrap of ``count`` samples reaches ``confidence``."""
    from scipy import stats

    far = np.sqrt(count / (count - 1)) * stats.t.ppf((1 + confidence) / 2, count - 1)
    return float(1 - 2 * stats.norm.cdf(-far))
