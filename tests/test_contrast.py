"""Simulated motions whose floor, plateau or both fall when SGD's noise is reduced."""

from dataclasses import replace
from math import exp, log, sqrt

import numpy as np
import pytest
from benchmarks.simulated_motions import CONFINED, GAP, Motion, simulate, simulate_drop

import conescope as cs
from conescope.errors import KernelError
from conescope.statistics.cone import Estimate
from conescope.statistics.cone.noise_contrast import contrast

COUNT = 50
FACTOR = 0.1
LESS = replace(CONFINED, confined=FACTOR * CONFINED.confined, jitter=FACTOR * CONFINED.jitter)


def across_a_drop(before, after, seed=0):
    series = simulate_drop(before, after, (COUNT, COUNT), seed).series
    drop = series.steps[COUNT]
    noisy = cs.cone(series, span=(0, series.steps[COUNT - 1]))
    calm = cs.cone(series, span=(drop, series.steps[-1]))
    return contrast(noisy, calm, sqrt(FACTOR))


def floor_of(motion):
    return motion.jitter + motion.confined * (1 - exp(-GAP / motion.relaxation))


def test_a_noise_ball_shrinks_with_the_learning_rate():
    found = across_a_drop(CONFINED, LESS)
    for change, ratio, answer in (
        (found.radius, sqrt(FACTOR), "yes"),
        (found.half_angle, sqrt(FACTOR), "yes"),
        (found.floor, FACTOR, "slower"),
    ):
        assert change.is_noise == answer
        assert change.alone == pytest.approx(ratio)
        assert change.ratio.low < 1.2 * ratio
        assert change.ratio.high > ratio / 1.2
    assert found.floor.before.value == pytest.approx(floor_of(CONFINED), rel=0.1)
    assert found.radius.before == found.noisy.radius
    assert found.radius.after == found.calm.radius


def test_what_is_no_noise_stays():
    found = across_a_drop(CONFINED, CONFINED)
    for change in (found.radius, found.half_angle, found.floor):
        assert change.is_noise == "no"
        assert 1.0 in change.ratio


def test_a_floor_of_noise_over_a_confined_motion_that_stays():
    noisy, calm = replace(CONFINED, jitter=0.02), replace(CONFINED, jitter=1e-4)
    averaged = contrast(
        cs.cone(simulate(noisy, 100, seed=1).series),
        cs.cone(simulate(calm, 100, seed=1).series),
        alone=0.0,
    )
    assert averaged.floor is not None
    assert (averaged.floor.line, averaged.radius.line) == (0.25, 0.5)
    assert floor_of(calm) / floor_of(noisy) in averaged.floor.ratio
    assert (averaged.floor.is_noise, averaged.radius.is_noise) == ("yes", "no")


def test_a_floor_that_stays_while_the_plateau_falls():
    """Jitter that averaging leaves, and a confined motion that it takes away."""
    noisy, calm = replace(CONFINED, jitter=0.004, relaxation=300.0), Motion(jitter=0.004)
    averaged = contrast(
        cs.cone(simulate(noisy, 100, seed=1).series),
        cs.cone(simulate(calm, 100, seed=1).series),
        alone=0.0,
    )
    assert averaged.floor is not None
    assert (averaged.floor.is_noise, averaged.radius.is_noise) == ("no", "yes")


def test_a_motion_that_is_only_slower_after_a_drop_is_not_called_noise():
    """A confined motion that no noise makes: the learning rate is its speed, not its size."""
    found = across_a_drop(CONFINED, replace(CONFINED, relaxation=CONFINED.relaxation / FACTOR))
    assert found.floor is not None
    assert (found.floor.is_noise, found.radius.is_noise) == ("slower", "no plateau")


def test_between_noise_and_none_it_cannot_be_told():
    share = (1 + sqrt(FACTOR)) / 2
    between = replace(
        CONFINED, confined=share**2 * CONFINED.confined, jitter=share**2 * CONFINED.jitter
    )
    found = across_a_drop(CONFINED, between)
    assert found.radius.line == share
    assert found.radius.is_noise == "cannot be told"


def test_a_motion_too_slow_for_a_plateau_has_none_to_compare():
    slow = replace(CONFINED, relaxation=6000.0)
    for before, after in ((CONFINED, slow), (slow, CONFINED)):
        assert across_a_drop(before, after).radius.is_noise == "no plateau"


def test_floors_at_other_lags_are_not_compared():
    series = simulate(CONFINED, 100, seed=0).series
    sparse = cs.KernelSeries(series.steps[::2], series.kernels[::2])
    found = contrast(cs.cone(series), cs.cone(sparse), alone=0.0)
    assert found.floor is None
    assert found.radius.is_noise == "no"


@pytest.mark.parametrize("gaps", [[50, 150], [10, 20, 40, 80, 160, 320, 640]])
def test_uneven_gaps_have_a_floor_too(gaps):
    steps = np.concatenate([[0], np.resize(gaps, 29).cumsum()])
    even = simulate(Motion(jitter=0.02), 30, seed=0).series
    found = cs.cone(cs.KernelSeries(steps.tolist(), even.kernels))
    assert found.gap == pytest.approx(np.diff(steps).mean())
    assert 0.02 in found.neighbour_distance


def test_the_ratio_puts_two_intervals_together():
    found = cs.cone(simulate(CONFINED, 50, seed=0).series)
    noisy = replace(found, radius=Estimate(0.2, 0.2 / exp(0.3), 0.2 * exp(0.3)))
    calm = replace(found, radius=Estimate(0.1, 0.1 / exp(0.4), 0.1 * exp(0.4)))
    ratio = contrast(noisy, calm, alone=0.0).radius.ratio
    assert ratio.value == 0.5
    assert (log(ratio.low), log(ratio.high)) == pytest.approx((log(0.5) - 0.5, log(0.5) + 0.5))
    unbounded = contrast(replace(noisy, radius=Estimate(0.2, 0.0, 1.0)), calm, alone=0.0).radius
    assert unbounded.ratio.high > 1e300
    assert unbounded.is_noise == "cannot be told"


def test_a_drop_is_no_phase_boundary():
    series = simulate_drop(CONFINED, LESS, (COUNT, COUNT), seed=0).series
    whole, before = cs.cone(series), cs.cone(series, span=(0, series.steps[COUNT - 1]))
    assert whole.boundary is not None
    assert whole.boundary.value == pytest.approx(series.steps[COUNT], abs=2 * GAP)
    assert before.boundary is None
    assert (before.first, before.last) == (0, series.steps[COUNT - 1])


def test_a_span_is_as_the_series_of_its_kernels():
    motion = replace(CONFINED, entrance=20)
    series = simulate(motion, 80, seed=0).series
    short = cs.KernelSeries(series.steps[:60], series.kernels[:60])
    found, alone = cs.cone(series, span=(0, short.steps[-1])), cs.cone(short)
    for field in ("verdict", "boundary", "first", "last", "gap", "floor"):
        assert getattr(found, field) == getattr(alone, field)
    assert found.radius.value == pytest.approx(alone.radius.value, rel=1e-6)
    assert found.start_distance.value == pytest.approx(alone.start_distance.value)
    assert found.angles[:60] == pytest.approx(alone.angles, abs=1e-6)
    assert not found.axis[60:].any()
    assert (found.angles[60:] > 0).all()
    with pytest.raises(KernelError, match="motion of 5 kernels"):
        cs.cone(series, span=(0, 499))
