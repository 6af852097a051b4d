"""Changes that are found when they are there, and only then."""

from __future__ import annotations

import numpy as np
import pytest

from bert_infer.measuring import changes

RUNS = 200


def timings(generator, count, spread):
    """Lognormal, as timings are: a few take much longer."""
    return generator.lognormal(0, spread, count)


def test_outliers_by_hand():
    # Quartiles 2 and 4: fences at -1 and 7, severe beyond -4 and 10.
    found = changes.outliers(np.array([1.0, 2, 2, 3, 3, 3, 4, 4, 8, 11, -2]))
    assert found == (1, 2, 1, 11)


def test_a_trend_is_found_with_its_size():
    samples = timings(np.random.default_rng(1), 20, 0.01) * np.linspace(1, 1.3, 20)
    assert changes.trend(samples) == pytest.approx(0.3, abs=0.04)
    assert changes.trend(samples[::-1]) == pytest.approx(1 / 1.3 - 1, abs=0.04)


def test_times_never_fall_by_more_than_all():
    """Seen to fail: -1.12, as a straight line of times ends below zero."""
    samples = timings(np.random.default_rng(1), 20, 0.01) * np.geomspace(20, 1, 20)
    assert changes.trend(samples) == pytest.approx(-0.95, abs=0.01)


def test_a_step_is_found_with_its_place_and_size():
    samples = timings(np.random.default_rng(1), 30, 0.01)
    samples[12:] *= 1.2
    step = changes.step(samples)
    assert step.at == 12
    assert step.change == pytest.approx(0.2, abs=0.02)


def test_of_thousands_of_forwards_the_place_is_still_told():
    samples = timings(np.random.default_rng(1), 5000, 0.05)
    samples[3000:] *= 1.2
    assert changes.step(samples).at == pytest.approx(3000, abs=50)


def test_noise_alone_is_no_change():
    generator = np.random.default_rng(5)
    runs = [timings(generator, 30, 0.2) for _ in range(RUNS)]
    assert sum(changes.trend(run) is not None for run in runs) <= RUNS * 0.02
    assert sum(changes.step(run) is not None for run in runs) <= RUNS * 0.02


def test_what_is_too_small_to_matter_is_not_said():
    samples = np.ones(40)
    samples[20:] = 1.01
    assert changes.step(samples) is None
    assert changes.trend(np.linspace(1, 1.01, 40)) is None


@pytest.mark.parametrize("find", [changes.trend, changes.step])
def test_few_or_equal_samples_show_no_change(find):
    assert find(np.array([1.0, 2, 3])) is None
    assert find(np.ones(50)) is None


def others_by_hand(samples):
    return np.array(
        [
            [time / np.median(np.delete(batch, index)) for index, time in enumerate(batch)]
            for batch in samples.T
        ]
    ).T


@pytest.mark.parametrize("passes", [2, 3, 4, 5, 8])
def test_each_time_is_taken_over_the_others_of_its_batch(passes):
    samples = timings(np.random.default_rng(3), passes * 4, 0.3).reshape(passes, 4)
    samples[0, 1] = samples[1, 1]  # ties
    assert np.allclose(changes.over_others(samples), others_by_hand(samples))


@pytest.mark.parametrize(("passes", "batches"), [(3, 24), (5, 6), (5, 24)])
def test_noise_of_few_passes_is_no_outlier(passes, batches):
    """Seen to fail: each over a median that includes itself, which called 1 of 6 outliers."""
    generator = np.random.default_rng(0)
    found = [
        changes.outliers(changes.over_others(run).ravel())
        for run in (
            timings(generator, passes * batches, 0.03).reshape(passes, batches) for _ in range(200)
        )
    ]
    assert sum(one.low + one.high for one in found) / (200 * passes * batches) < 0.02
