"""Kernel distances between estimates: without the bias of their noise, and with standard errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conescope.engine import estimate_distance
from conescope.errors import KernelError
from conescope.kernel import estimates
from conescope.kernel.distance import distance_matrix
from conescope.kernel.estimates import estimated_distances, jackknife
from conescope.kernel.features import Features
from conescope.kernel.matrix import Kernel, Randomness
from conescope.kernel.series import KernelSeries

DRAWS, SAMPLES, OUTPUTS = 6, 5, 4


def full_kernels(times=(0.0, 0.2, 0.5), seed=0):
    """Full kernels [n, c, n, c] of a Jacobian that moves along a line."""
    generator = torch.Generator().manual_seed(seed)
    start, change = torch.randn(2, SAMPLES, OUTPUTS, 30, generator=generator, dtype=torch.float64)
    jacobians = [start + time * change for time in times]
    return [torch.einsum("icp,jdp->icjd", each, each) for each in jacobians]


def estimated(full, seed=0, draws=DRAWS):
    generator = torch.Generator().manual_seed(seed)
    signs = 2.0 * torch.randint(0, 2, (draws, OUTPUTS), generator=generator).double() - 1
    drawn = torch.einsum("rc,icjd,rd->rij", signs, full, signs)
    return Kernel(drawn.mean(dim=0), draws=drawn)


def exact(full):
    return Kernel(torch.einsum("icjc->ij", full))


def made_features(times=(0.0, 0.2, 0.5), groups=4, samples=7, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    start, change = torch.randn(2, samples, 5 * groups, generator=generator, dtype=torch.float64)
    return [Features((start + time * change).to(dtype), groups) for time in times]


def series_of(kernels):
    return KernelSeries(range(0, 10 * len(kernels), 10), kernels)


@given(st.integers(2, 9), st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_the_jackknife_of_a_mean_is_the_textbooks(count, seed):
    values = np.random.default_rng(seed).normal(size=(count, 3))
    total = values.sum(axis=0)
    without = np.stack([(total - one) / (count - 1) for one in values])
    value, error = jackknife(values.mean(axis=0), without)
    np.testing.assert_allclose(value, values.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(error, values.std(axis=0, ddof=1) / np.sqrt(count), atol=1e-12)


def test_the_jackknife_takes_the_bias_from_a_squared_mean():
    """E mean² = μ² + σ² / R; without it, mean² − s² / R is left."""
    values = np.random.default_rng(0).normal(1.0, 2.0, size=8)
    without = np.array([np.delete(values, place).mean() ** 2 for place in range(8)])
    value, _ = jackknife(np.array(values.mean() ** 2), without)
    assert value == pytest.approx(values.mean() ** 2 - values.var(ddof=1) / 8)


@pytest.mark.parametrize("numbers", [1, 200, 2**24])
def test_distances_without_a_draw_are_those_of_the_kernels_without_it(numbers, monkeypatch):
    monkeypatch.setattr(estimates, "_NUMBERS", numbers)
    kernels = [estimated(full) for full in full_kernels()]
    found = estimated_distances(kernels)
    np.testing.assert_allclose(found.plain, distance_matrix(kernels), rtol=1e-12)
    for draw, distances in enumerate(found.without):
        rest = [torch.cat([k.draws[:draw], k.draws[draw + 1 :]]).mean(dim=0) for k in kernels]
        expected = distance_matrix([Kernel(values) for values in rest])
        np.testing.assert_allclose(distances, expected, rtol=1e-12)


@pytest.mark.parametrize("numbers", [1, 60, 2**24])
def test_features_give_what_their_kernels_give(numbers, monkeypatch):
    monkeypatch.setattr(estimates, "_NUMBERS", numbers)
    features = made_features()
    found = estimated_distances(features)
    expected = estimated_distances([one.kernel for one in features])
    np.testing.assert_allclose(found.plain, expected.plain, rtol=1e-12)
    np.testing.assert_allclose(found.without, expected.without, rtol=1e-12)


def test_a_small_distance_keeps_its_digits():
    full = full_kernels((0.0, 1e-5))
    found = estimated_distances([estimated(one) for one in full])
    close = estimated_distances([estimated(one) for one in full_kernels((0.0, 1e-4))])
    assert found.plain[0, 1] == pytest.approx(close.plain[0, 1] / 100, rel=1e-3)
    assert 0 < found.plain[0, 1] < 1e-9


def test_identical_checkpoints_are_at_distance_0_with_error_0():
    kernel, feature = estimated(full_kernels()[1]), made_features()[1]
    scaled = Kernel(3.0 * kernel.values, draws=3.0 * kernel.draws)
    for pair in ((kernel, kernel), (kernel, scaled), (feature, feature)):
        series = series_of(pair)
        np.testing.assert_allclose(series.distances(), 0.0, atol=1e-15)
        np.testing.assert_allclose(series.standard_errors(), 0.0, atol=1e-15)


def test_equal_draws_give_the_exact_distance_with_error_0():
    kernels = [exact(full) for full in full_kernels()]
    copies = [Kernel(k.values, draws=k.values.repeat(DRAWS, 1, 1)) for k in kernels]
    series = series_of(copies)
    np.testing.assert_allclose(series.distances(), distance_matrix(kernels), rtol=1e-9)
    np.testing.assert_allclose(series.standard_errors(), 0.0, atol=1e-12)


def test_the_error_is_that_of_estimate_distance():
    first, second = (estimated(full) for full in full_kernels()[:2])
    plain, error = estimate_distance(first, second)
    series = series_of([first, second])
    assert series.standard_errors()[0, 1] == pytest.approx(error)
    assert series.estimated.plain[0, 1] == pytest.approx(plain)


def test_distances_of_estimates_have_little_bias_and_errors_that_hold_the_truth():
    full = full_kernels()
    truth = distance_matrix([exact(one) for one in full])[0, 1]
    rows = [estimated_distances([estimated(one, seed, 8) for one in full]) for seed in range(400)]
    plain, found, errors = (
        np.array([getattr(row, name)[0, 1] for row in rows])
        for name in ("plain", "corrected", "errors")
    )
    assert abs(found.mean() - truth) < 0.3 * abs(plain.mean() - truth)
    assert np.sqrt((found - truth) @ (found - truth)) < np.sqrt((plain - truth) @ (plain - truth))
    assert 0.9 < errors.mean() / found.std() < 1.25
    assert np.mean(np.abs(found - truth) < 2.36 * errors) > 0.88  # t with 7 degrees, 95 %


def test_a_series_of_estimates_reads_everything_from_the_corrected_distances():
    series = series_of([estimated(full) for full in full_kernels()])
    corrected = series.estimated.corrected
    assert series.draws == DRAWS
    np.testing.assert_array_equal(series.distances(), corrected)
    np.testing.assert_array_equal(series.cosines(), 1.0 - corrected)
    np.testing.assert_array_equal(series.velocities(10)[1], corrected.diagonal(1) / 10)


def test_exact_kernels_are_as_they_were_and_have_no_errors():
    kernels = [exact(full) for full in full_kernels()]
    series = series_of(kernels)
    assert series.draws is None
    np.testing.assert_array_equal(series.distances(), distance_matrix(kernels))
    mixed = series_of([kernels[0], estimated(full_kernels()[1])])
    np.testing.assert_array_equal(mixed.distances(), distance_matrix(mixed.kernels))
    for none in (series, mixed):
        with pytest.raises(KernelError, match="only a series of estimates"):
            none.standard_errors()


def test_kernels_of_features_are_computed_one_at_a_time():
    features = made_features()
    series = series_of(features)
    assert len(series.kernels) == 3
    for one, kernel in zip(features, series.kernels, strict=True):
        torch.testing.assert_close(kernel.values, one.kernel.values)
        assert kernel.draws is None
    assert len(series.kernels[1:]) == 2
    assert series.kernels[0] is not series.kernels[0]
    assert "features of shape (7, 20)" in repr(series)


def test_a_series_has_one_seed_as_far_as_it_is_known():
    first, second = (estimated(full) for full in full_kernels()[:2])
    seeds = [Randomness("random cotangents", seed) for seed in (0, 1)]
    one, another = (replace(k, randomness=s) for k, s in zip((first, second), seeds, strict=True))
    with pytest.raises(KernelError, match=r"seed 0 and random cotangents, seed 1; measure all"):
        series_of([one, another])
    assert series_of([one, second]).draws == series_of([first, second]).draws == DRAWS


def test_estimates_that_do_not_fit_are_refused():
    first, second = full_kernels()[:2]
    four, eight = made_features(groups=4)[0], made_features(groups=8)[1]
    for pair in (
        (estimated(first, draws=4), estimated(second, draws=8)),
        (four, eight),
        (four, estimated(second)),
    ):
        with pytest.raises(KernelError, match=r"estimates of different kinds .* the same draws"):
            series_of(pair)
    with pytest.raises(KernelError, match="kernels and features cannot be compared"):
        series_of([four, exact(second)])
    with pytest.raises(KernelError, match=r"features of different samples .*\(5, 20\)"):
        series_of([four, Features(four.values[:5], 4)])


def test_an_estimate_that_is_zero_is_named_by_its_step():
    draws = torch.zeros(3, 4, 4)
    zero = Kernel(draws.mean(dim=0), draws=draws)
    whole = Kernel(torch.eye(4), draws=torch.eye(4).repeat(3, 1, 1))
    with pytest.raises(KernelError, match="at step 10, a kernel is zero"):
        series_of([whole, zero]).distances()
    draws = torch.stack([torch.eye(4), torch.zeros(4, 4)])
    with pytest.raises(KernelError, match="without one of its draws is zero"):
        series_of([Kernel(draws.mean(dim=0), draws=draws)] * 2).distances()
