"""The uncertainty that estimates of kernels add to the numbers and the verdict of a cone.

The noise of an estimate is that of its draws, which all kernels of a series share: it distorts the
whole motion in one way, and no interval over time can see it. The jackknife over the draws does
(Tukey, Annals of Mathematical Statistics 29:614, 1958). Its standard error and the interval over
time have independent causes, so that their squared half-widths add (Zou & Donner, Statistics in
Medicine 27:1693, 2008).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import stdtrit

from conescope.kernel.estimates import jackknife
from conescope.statistics.cone.intervals import Estimate
from conescope.statistics.cone.verdict import Kind, decide

if TYPE_CHECKING:
    from conescope.statistics.cone.cone_of_series import Cone

_LEAST = 0.05
"""The least share of a squared length that is left when the bias of the draws is taken from it."""


def over_draws(
    whole: Cone, without: Sequence[Cone], boundaries: Sequence[Estimate], level: float
) -> Cone:
    """Return a cone whose numbers and verdict know of the uncertainty of the draws.

    Args:
        whole: the cone of the mean kernels.
        without: the cones of the same kernels without one of the R draws, R of them.
        boundaries: the phase boundaries without one of the draws, where there is one.
        level: confidence of the intervals, in (0, 1).

    Returns:
        Squared lengths without the bias of the draws, all numbers with wider intervals, and for
        each kind of motion the lowest of its probabilities: a verdict holds whichever draw is left
        out. Displacement, axis, angles, shares and evidence stay those of the mean kernels.
    """

    def read(number: Callable[[Cone], Estimate], power: int) -> Estimate:
        return with_draws(number(whole), [number(one) for one in without], level, power)

    boundary, time = whole.boundary, whole.relaxation_time
    if boundary is not None and boundaries:
        ends = [boundary, *boundaries]
        low, high = min(one.low for one in ends), max(one.high for one in ends)
        boundary = Estimate(boundary.value, low, high)
    times = [one.relaxation_time for one in without if one.relaxation_time is not None]
    if time is not None and times:
        time = with_draws(time, times, level, 0)
    probability: dict[Kind, float] = {
        kind: min(one.probability[kind] for one in (whole, *without)) for kind in whole.probability
    }
    return replace(
        whole,
        verdict=decide(probability, int(np.count_nonzero(whole.axis))),
        probability=probability,
        boundary=boundary,
        exponent=read(lambda one: one.exponent, 0),
        radius=read(lambda one: one.radius, 2),
        relaxation_time=time,
        half_angle=read(lambda one: one.half_angle, 2),
        dimension=read(lambda one: one.dimension, 0),
        start_distance=read(lambda one: one.start_distance, 1),
        neighbour_distance=read(lambda one: one.neighbour_distance, 1),
    )


def with_draws(whole: Estimate, without: Sequence[Estimate], level: float, power: int) -> Estimate:
    """Return a positive number with the uncertainty of the draws in its interval.

    Args:
        whole: the number from all R draws.
        without: the number without one of the draws, R of them.
        level: confidence, in (0, 1).
        power: of a number whose 1st or 2nd power is a squared length, to which noise adds: that
            power, whose bias is taken away. 0 for a ratio, where noise is above and below.
    """
    values = np.array([one.value for one in without])
    if not (whole.value > 0 and (values > 0).all() and len(values) > 1):
        highest = max(one.high for one in (whole, *without))
        return Estimate(whole.value, min(one.low for one in (whole, *without)), highest)
    square, error = map(float, jackknife(np.array(whole.value**power), values**power))
    log_ratio, relative = 0.0, float(jackknife(np.array(0.0), np.log(values))[1])
    if power:
        square = max(square, _LEAST * whole.value**power)
        log_ratio = math.log(square) / power - math.log(whole.value)
        relative = error / square / power
    width = float(stdtrit(len(values) - 1, (1 + level) / 2)) * relative
    below = math.hypot(math.log(whole.value / whole.low) if whole.low > 0 else math.inf, width)
    above = math.hypot(math.log(whole.high / whole.value), width)
    value = whole.value * math.exp(log_ratio)
    return Estimate(value, value * math.exp(-below), value * math.exp(min(above, 700.0)))
