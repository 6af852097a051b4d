"""Intervals that hold the truth as often as they say."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import signal, stats

from bert_infer.measuring import intervals

RUNS = 500
mean = intervals.of_mean


def median(samples):
    return intervals.of_median(samples[:, None])


def timings(generator, count, spread=0.08):
    """Lognormal, as timings are: a few take much longer."""
    return generator.lognormal(0, spread, count)


@pytest.mark.parametrize("count", [8, 20, 60])
@pytest.mark.parametrize(("interval", "truth"), [(mean, np.exp(0.08**2 / 2)), (median, 1.0)])
def test_intervals_hold_the_truth_in_about_95_percent_of_runs(count, interval, truth):
    generator = np.random.default_rng(count)
    held = 0
    for _ in range(RUNS):
        low, high = interval(timings(generator, count))
        held += low <= truth <= high
    # Three standard errors of such a share are 0.03.
    assert 0.92 <= held / RUNS <= 0.98


def drifting(generator, count, likeness, spread=0.05):
    """Lognormal timings, each like the one before it (a first-order autoregressive process)."""
    noise = generator.normal(0, spread * np.sqrt(1 - likeness**2), count + 100)
    return np.exp(signal.lfilter([1], [1, -likeness], noise)[100:])


@pytest.mark.parametrize(
    ("interval", "truth"), [(mean, np.exp(0.05**2 / 2)), (median, 1.0)], ids=["mean", "median"]
)
def test_intervals_are_wider_where_timings_are_like_the_ones_before(interval, truth):
    """Seen to fail: as if they were independent, which held the truth in 70 % of runs."""
    generator = np.random.default_rng(0)
    runs, held = RUNS // 2, 0
    for _ in range(runs):
        low, high = interval(drifting(generator, 200, likeness=0.5))
        held += low <= truth <= high
    assert held / runs >= 0.86


def test_likeness_is_told_from_chance():
    generator = np.random.default_rng(0)
    alike = [intervals.autocorrelation(drifting(generator, 100, 0.5)) for _ in range(RUNS)]
    assert sum(found is not None for found in alike) > 0.95 * RUNS
    assert np.median([found for found in alike if found]) == pytest.approx(0.5, abs=0.05)
    apart = [intervals.autocorrelation(timings(generator, 100)) for _ in range(RUNS)]
    assert sum(found is not None for found in apart) < 0.06 * RUNS
    assert intervals.autocorrelation(np.ones(100)) is None
    assert intervals.autocorrelation(np.arange(19.0)) is None


def test_the_interval_of_a_ratio_is_wider_where_either_side_is_so():
    generator = np.random.default_rng(0)
    low, high = intervals.of_ratio(timings(generator, 200), drifting(generator, 200, 0.8))
    of_independent = 2 * 1.96 * np.hypot(0.08, 0.05) / np.sqrt(200)
    assert high - low > 2 * of_independent


def test_intervals_agree_with_scipys_own_on_the_same_samples():
    samples = np.random.default_rng(3).normal(10, 1, 40)
    by_t = stats.t.interval(0.95, 39, samples.mean(), stats.sem(samples))
    assert mean(samples) == pytest.approx(by_t, rel=0.01)
    exact = stats.quantile_test(samples, q=samples.mean(), p=0.5).confidence_interval()
    assert median(samples) == pytest.approx(exact, rel=0.02)


def test_too_few_samples_have_no_interval():
    few = np.ones(intervals.FEWEST_FOR_INTERVAL - 1)
    for interval in (mean, median):
        assert interval(few) is None
        assert interval(np.ones(intervals.FEWEST_FOR_INTERVAL)) == (1, 1)


def test_rows_are_resampled_whole():
    """Three shapes of very different speed: their spread is no uncertainty of a pass."""
    passes = timings(np.random.default_rng(0), 30, 0.01)[:, None] * [1.0, 2.0, 4.0]
    low, high = intervals.of_median(passes)
    assert low <= 2 <= high
    assert high - low < 0.04


def test_of_very_many_samples_the_interval_is_the_same_and_soon_there():
    samples = timings(np.random.default_rng(0), 1_000_000)
    by_t = stats.t.interval(0.95, len(samples) - 1, samples.mean(), stats.sem(samples))
    assert mean(samples) == pytest.approx(by_t, abs=1e-4)
    half = 1.96 * 0.08 * np.sqrt(np.pi / 2 / len(samples))  # of a normal's median
    assert np.log(median(samples)) == pytest.approx((-half, half), abs=2e-4)
    low, high = intervals.of_ratio(samples, samples[:1000])
    assert low < 1 < high


def test_the_interval_of_a_rate_turns_around():
    assert intervals.Interval(2.0, 4.0).over(8) == (2.0, 4.0)
    assert intervals.Interval(1.0, 4.0).over(8) == (2.0, 8.0)
