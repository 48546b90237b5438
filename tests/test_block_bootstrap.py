from math import sqrt

import numpy as np
import pytest
from benchmarks.block_bootstrap import block_length, interval, resampled_means


def autoregression(rho, count, seed):
    """Return a stationary series with correlation rho^k and variance 1 at each time."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(count)
    for k in range(1, count):
        values[k] = rho * values[k - 1] + sqrt(1 - rho**2) * values[k]
    return values


@pytest.mark.parametrize("rho", [0.0, 0.6])
def test_the_means_spread_as_those_of_the_series_do(rho):
    count = 4000
    spreads = [resampled_means(autoregression(rho, count, s), s).std() for s in range(5)]
    assert np.mean(spreads) == pytest.approx(sqrt((1 + rho) / (1 - rho) / count), rel=0.15)


def test_blocks_have_the_best_length_for_an_autoregression():
    """For correlation ρ^k the rule's own quantities are closed forms: b³ = 6 ρ² T / (1 − ρ²)²."""
    rho, count = 0.6, 4000
    best = (6 * rho**2 * count / (1 - rho**2) ** 2) ** (1 / 3)
    lengths = [block_length(autoregression(rho, count, s)) for s in range(9)]
    assert np.median(lengths) == pytest.approx(best, rel=0.25)
    assert np.median([block_length(autoregression(0.0, count, s)) for s in range(9)]) <= 5


def test_an_interval_lies_about_the_mean():
    values = autoregression(0.5, 300, 0) + 7
    low, high = interval(values, seed=0)
    assert low < values.mean() < high
