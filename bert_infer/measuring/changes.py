"""What happened while timings were taken: outliers, trends and steps.

Pure functions of arrays. Where there are too few samples to answer a question, they return None.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEWEST_FOR_CHANGE = 8
"""Fewest samples in which a trend or step is looked for."""
CHANGE_WORTH_SAYING = 0.05
_CERTAINTY = 0.01  # of independent timings, by chance in fewer than one run of a hundred
_BLOCKS = 100  # enough to see where timings changed


class Outliers(NamedTuple):
    """How many samples lie beyond Tukey's fences, and how many there are."""

    low: int
    high: int
    severe: int
    samples: int


class Step(NamedTuple):
    """A change at sample ``at``, counted from 0, relative to the median before it."""

    at: int
    change: float


def outliers(samples: NDArray[np.float64]) -> Outliers:
    """Count the samples beyond 1.5 and, severe, 3 interquartile ranges from the quartiles.

    The fences are Tukey's (Exploratory Data Analysis, 1977).
    """
    low, high = np.percentile(samples, [25, 75])
    spread = high - low
    return Outliers(
        low=int((samples < low - 1.5 * spread).sum()),
        high=int((samples > high + 1.5 * spread).sum()),
        severe=int(((samples < low - 3 * spread) | (samples > high + 3 * spread)).sum()),
        samples=len(samples),
    )


def over_others(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return each time over the median of its batch's other passes.

    Over a median that includes itself, one time of each batch would be exactly 1, and the others
    near it: with few passes the fences would be so close that plain noise lies beyond them.

    Args:
        samples: ``[passes, batches]``, times of 2 passes at the least.
    """
    count = len(samples)
    ordered, rank = np.sort(samples, axis=0), samples.argsort(axis=0).argsort(axis=0)
    middle = count // 2
    if count % 2:
        lower, upper = ordered[middle - 1], ordered[middle + 1]
        medians = np.select(
            [rank < middle, rank == middle],
            [(ordered[middle] + upper) / 2, (lower + upper) / 2],
            (lower + ordered[middle]) / 2,
        )
    else:
        medians = np.where(rank < middle, ordered[middle], ordered[middle - 1])
    relative: NDArray[np.float64] = samples / medians
    return relative


def trend(samples: NDArray[np.float64]) -> float | None:
    """Return how far timings moved from the first to the last, relative to the first.

    The slope is Theil and Sen's, which single outliers do not tilt; of logarithms, since times
    cannot fall below zero. None for few samples, where Kendall's rank correlation with time is not
    significant, or for a change too small to mention.
    """
    blocks, size = _in_blocks(samples)
    if len(blocks) < FEWEST_FOR_CHANGE or np.ptp(blocks) == 0:
        return None
    from scipy import stats

    order = size * np.arange(len(blocks))
    if stats.kendalltau(order, blocks).pvalue > _CERTAINTY:
        return None
    slope = stats.theilslopes(np.log(blocks), order).slope
    change = float(np.expm1(slope * (len(samples) - 1)))
    return change if abs(change) > CHANGE_WORTH_SAYING else None


def step(samples: NDArray[np.float64]) -> Step | None:
    """Return where timings stepped, and how far.

    The step is where a rank sum test (Mann and Whitney's) tells the two sides apart best, corrected
    for the number of places tried (Bonferroni). None for few samples, where nothing is significant,
    or for a change too small to mention.
    """
    samples, size = _in_blocks(samples)
    if len(samples) < FEWEST_FOR_CHANGE or np.ptp(samples) == 0:
        return None
    from scipy import stats

    chance = {
        at: stats.mannwhitneyu(samples[:at], samples[at:], method="asymptotic").pvalue
        for at in range(3, len(samples) - 2)
    }
    at = min(chance, key=lambda place: chance[place])
    if chance[at] * len(chance) > _CERTAINTY:
        return None
    change = float(np.median(samples[at:]) / np.median(samples[:at]) - 1)
    return Step(at * size, change) if abs(change) > CHANGE_WORTH_SAYING else None


def _in_blocks(samples: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Return means of neighbours, fewer than twice ``_BLOCKS``, and how many are in each."""
    size = max(1, len(samples) // _BLOCKS)
    whole = len(samples) // size * size
    return samples[:whole].reshape(-1, size).mean(axis=1), size
