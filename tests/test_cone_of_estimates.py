"""What estimates of kernels add to the uncertainty of a cone, and of S over the probe."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from conescope.errors import KernelError
from conescope.kernel.features import Features
from conescope.kernel.matrix import Kernel
from conescope.kernel.series import KernelSeries
from conescope.statistics.cone import Estimate, cone
from conescope.statistics.cone.of_estimates import over_draws, with_draws
from conescope.statistics.uncertainty import sampled_distance

COUNT, SAMPLES, OUTPUTS, PARAMETERS = 24, 10, 6, 20
NUMBERS = ("radius", "half_angle", "dimension", "start_distance", "neighbour_distance", "exponent")


def jacobians(seed=0):
    """A Jacobian [n, c, p] that relaxes about a fixed one, in a few directions."""
    generator = torch.Generator().manual_seed(seed)
    shape = (SAMPLES, OUTPUTS, PARAMETERS)
    fixed = torch.randn(shape, generator=generator, dtype=torch.float64)
    ways = torch.randn(6, math.prod(shape), generator=generator, dtype=torch.float64) / 6**0.5
    state, found = torch.zeros(6, dtype=torch.float64), []
    for _ in range(COUNT + 20):
        state = 0.6 * state + 0.8 * torch.randn(6, generator=generator, dtype=torch.float64)
        found.append(fixed + 0.1 * (state @ ways).view(shape))
    return found[20:]


def exact(jacobian):
    return Kernel(torch.einsum("icp,jcp->ij", jacobian, jacobian))


def estimated(jacobian, draws=8, seed=1):
    generator = torch.Generator().manual_seed(seed)
    signs = 2.0 * torch.randint(0, 2, (draws, OUTPUTS), generator=generator).double() - 1
    rows = torch.einsum("rc,icp->rip", signs, jacobian)
    drawn = rows @ rows.mT
    return Kernel(drawn.mean(dim=0), draws=drawn)


def series_of(kernels):
    return KernelSeries(range(0, 100 * len(kernels), 100), kernels)


def widths(estimate):
    return np.log([estimate.value / estimate.low, estimate.high / estimate.value])


def test_equal_draws_give_the_cone_of_the_exact_kernels():
    kernels = [exact(each) for each in jacobians()]
    copies = [Kernel(k.values, draws=k.values.repeat(3, 1, 1)) for k in kernels]
    expected, found = cone(series_of(kernels)), cone(series_of(copies))
    assert found.verdict == expected.verdict
    assert found.probability == pytest.approx(expected.probability, abs=1e-3)
    for name in NUMBERS:
        one, other = getattr(found, name), getattr(expected, name)
        assert one.value == pytest.approx(other.value, rel=1e-4)
        assert one.low == pytest.approx(other.low, rel=1e-3)
        assert one.high == pytest.approx(other.high, rel=1e-3)


def test_the_numbers_of_estimates_hold_the_exact_ones_in_wider_intervals():
    moved = jacobians()
    truth = cone(series_of([exact(each) for each in moved]))
    series = series_of([estimated(each) for each in moved])
    found = cone(series)
    for name in ("radius", "half_angle", "neighbour_distance"):
        estimate = getattr(found, name)
        assert getattr(truth, name).value in estimate
        assert (widths(estimate) > widths(getattr(truth, name))).all()
    plain = np.sqrt(series.estimated.plain[0, 1:].mean() / truth.start_distance.value)
    assert plain > found.half_angle.value / truth.half_angle.value


def test_a_verdict_holds_whichever_draw_is_left_out():
    whole = cone(series_of([exact(each) for each in jacobians()]))
    probability = {**whole.probability, "confined": 0.95, "drift": 0.02}
    whole = replace(whole, verdict="confined", probability=probability)
    other = replace(whole, probability={**probability, "confined": 0.3, "drift": 0.6})
    assert over_draws(whole, [whole, whole], [], 0.95).verdict == "confined"
    found = over_draws(whole, [whole, other], [], 0.95)
    assert found.verdict == "undecided"
    assert (found.probability["confined"], found.probability["drift"]) == (0.3, 0.02)


def test_the_boundary_is_as_wide_as_those_without_a_draw():
    whole = cone(series_of([exact(each) for each in jacobians()]))
    whole = replace(whole, boundary=Estimate(500.0, 400.0, 600.0))
    others = [Estimate(450.0, 350.0, 500.0), Estimate(550.0, 500.0, 800.0)]
    assert over_draws(whole, [whole] * 2, others, 0.95).boundary == Estimate(500.0, 350.0, 800.0)


@pytest.mark.parametrize("power", [1, 2])
def test_squared_lengths_lose_the_bias_of_the_draws_and_intervals_hold_them(power):
    """E (mean of noisy vectors)² = truth + noise² / R, seen over many choices of the noise."""
    rng, truth, held, values = np.random.default_rng(0), 2.0, [], []
    for _ in range(500):
        draws = rng.normal(math.sqrt(truth / 20), 0.3, size=(6, 20))
        square = (draws.mean(axis=0) ** 2).sum()
        rest = [(np.delete(draws, k, axis=0).mean(axis=0) ** 2).sum() for k in range(6)]
        sharp = [Estimate(*[each ** (1 / power)] * 3) for each in (square, *rest)]
        found = with_draws(sharp[0], sharp[1:], 0.95, power)
        values.append(found.value**power)
        held.append(truth ** (1 / power) in found)
    assert abs(np.mean(values) - truth) < 0.03
    assert 0.92 < np.mean(held) < 0.99


def test_the_interval_over_time_and_the_error_of_the_draws_add_in_squares():
    whole = Estimate(1.0, math.exp(-0.3), math.exp(0.4))
    rest = [Estimate(math.exp(x), 0.0, 0.0) for x in (-0.1, 0.0, 0.1)]
    found = with_draws(whole, rest, 0.95, 0)
    error = math.sqrt(2 / 3 * 0.02) * student.ppf(0.975, 2)
    assert found.value == 1.0
    assert math.log(found.low) == pytest.approx(-math.hypot(0.3, error))
    assert math.log(found.high) == pytest.approx(math.hypot(0.4, error))


def test_bounds_stay_bounds():
    """A relaxation time that is only bounded from above, and a dimension without an upper end."""
    bound = with_draws(
        Estimate(0.0, 0.0, 5.0), [Estimate(0.0, 0.0, high) for high in (4, 7)], 0.9, 0
    )
    assert (bound.value, bound.low, bound.high) == (0.0, 0.0, 7.0)
    open_end = Estimate(3.0, 0.0, math.inf)
    found = with_draws(open_end, [open_end, open_end], 0.9, 0)
    assert (found.value, found.low) == (3.0, 0.0)
    assert found.high > 1e100


def test_s_over_the_probe_knows_of_the_draws():
    first, second = jacobians()[:2]
    truth = sampled_distance(exact(first), exact(second))
    estimates = [estimated(each) for each in (first, second)]
    found = sampled_distance(*estimates)
    alone = sampled_distance(*(Kernel(each.values) for each in estimates))
    assert found.standard_error > alone.standard_error
    assert found.low < truth.unbiased < found.high
    assert found.plain == series_of(estimates).distances()[0, 1]
    copies = [Kernel(k.values, draws=k.values.repeat(3, 1, 1)) for k in map(exact, (first, second))]
    same = sampled_distance(*copies)
    assert same.unbiased == pytest.approx(truth.unbiased, rel=1e-9)
    assert same.standard_error == pytest.approx(truth.standard_error, rel=1e-9)


def test_s_over_the_probe_is_the_same_of_features_and_of_their_kernels():
    features = [Features(each[:, :4].flatten(1), 4) for each in jacobians()[:2]]
    found = sampled_distance(*features)
    expected = sampled_distance(*(one.kernel for one in features))
    for name in ("plain", "unbiased", "standard_error", "low", "high"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), rel=1e-6)
    with pytest.raises(KernelError, match="kernels and features cannot be compared"):
        sampled_distance(features[0], Kernel(torch.eye(SAMPLES)))


def test_a_cone_of_features_is_that_of_their_kernels():
    features = [Features(each[:, :2].flatten(1), 4) for each in jacobians()]
    found = cone(series_of(features))
    expected = cone(series_of([one.kernel for one in features]))
    for name in NUMBERS:
        assert getattr(found, name).value == pytest.approx(getattr(expected, name).value, rel=1e-3)
