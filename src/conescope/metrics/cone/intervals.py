"""Confidence intervals of what is read off a fitted motion."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import t as student

from conescope.metrics.cone.estimate import Estimate
from conescope.metrics.cone.models import Fit, Likelihood, Parts
from conescope.metrics.cone.modes import Modes
from conescope.metrics.distance import Float64Array


def of_amplitudes(fit: Fit, parts: Parts, level: float) -> Estimate:
    """The sum of some parts' amplitudes, by the delta method on its logarithm.

    Args:
        fit: a sum of motions.
        parts: whose amplitudes to add; those the fit lacks do not count.
        level: confidence, in (0, 1).
    """
    places = [fit.parts.index(part) for part in parts if part in fit.parts]
    amplitudes = np.array([fit.amplitudes[fit.parts[place]] for place in places])
    total = float(amplitudes.sum())
    gradient = amplitudes / total
    spread = math.sqrt(gradient @ fit.covariance[np.ix_(places, places)] @ gradient)
    width = quantile(gradient @ fit.information[places], level) * spread
    return Estimate(total, total * math.exp(-width), total * math.exp(width))


def of_shape(likelihood: Likelihood, parts: Parts, level: float) -> Estimate:
    """The shape parameter of a sum of motions, by its profile likelihood.

    The interval holds the values whose likelihood ratio to the best lies below the squared
    quantile of Student's t; an end at the border of what can be resolved is that border.
    """
    best = likelihood.fit(parts)
    grid = likelihood.spectra.grid(parts)
    assert grid is not None
    fits = [likelihood.fit(parts, shape) for shape in grid]
    rise = np.array([fit.deviance for fit in fits]) - best.deviance
    limit = quantile(best.information[-1], level) ** 2
    below, above = grid <= best.shape, grid >= best.shape
    low = _crossing(best.shape, grid[below][::-1], rise[below][::-1], limit)
    high = _crossing(best.shape, grid[above], rise[above], limit)
    return Estimate(best.shape, low, high)


def _crossing(start: float, grid: Float64Array, rise: Float64Array, limit: float) -> float:
    """Where the rise first passes the limit on the way from the best value along the grid."""
    places, rises = np.append(start, grid), np.append(0.0, rise)
    over = np.flatnonzero(rises > limit)
    if len(over) == 0:
        return float(places[-1])
    k = int(over[0])
    # A deviance is a parabola near its lowest point: interpolate its root.
    near, far = math.sqrt(max(rises[k - 1], 0.0)), math.sqrt(rises[k])
    share = (math.sqrt(limit) - near) / (far - near)
    return float(places[k - 1] + share * (places[k] - places[k - 1]))


def of_extent(modes: Modes, fit: Fit, level: float) -> Estimate:
    """Root of the mean squared distance from the phase's own mean, Σ_k g_k / T."""
    mean = float(modes.power.sum()) / len(modes.times)
    terms = 2.0 * fit.variances**2 / fit.dimensions
    spread = math.sqrt(terms.sum()) / float(fit.variances.sum())
    width = quantile(terms, level) * spread / 2
    extent = math.sqrt(mean)
    return Estimate(extent, extent * math.exp(-width), extent * math.exp(width))


def of_dimension(modes: Modes, fit: Fit, level: float) -> Estimate:
    """Participation ratio (tr Λ)² / tr Λ² of the motion's covariance Λ, without bias.

    Pairs of different modes are independent, so their products need no correction; a mode with
    itself is corrected by its degrees of freedom, and a drift counts as one direction. The
    interval is a jackknife over modes (Efron & Stein, Annals of Statistics 9:586, 1981).
    """
    power, q = modes.power, fit.dimensions
    own = power**2 / (1.0 + 2.0 / q)
    traces = np.outer(power, power)
    squares = modes.gram**2
    np.fill_diagonal(traces, own)
    inverse = 1.0 / np.clip(q, 1.0, None)
    if "drift" in fit.parts:
        steady = fit.powers[fit.parts.index("drift"), 0] / fit.variances[0]
        inverse[0] = steady**2
    np.fill_diagonal(squares, own * inverse)
    left_out = [
        all_pairs.sum() - 2 * all_pairs.sum(axis=0) + all_pairs.diagonal()
        for all_pairs in (traces, squares)
    ]
    ratio = max(float(traces.sum() / squares.sum()), 1.0)
    logarithms = np.log(left_out[0] / left_out[1])
    deviations = logarithms - logarithms.mean()
    count = len(power)
    spread = math.sqrt((count - 1) / count * float(deviations @ deviations))
    width = quantile(deviations**2, level) * spread
    return Estimate(ratio, max(ratio * math.exp(-width), 1.0), ratio * math.exp(width))


def of_mean(values: Float64Array, level: float, batches: int = 8) -> Estimate:
    """Mean of correlated values, by non-overlapping batch means.

    Source: Schmeiser, Operations Research 30:556 (1982), for the number of batches.
    """
    means = np.array([batch.mean() for batch in np.array_split(values, min(batches, len(values)))])
    error = float(means.std(ddof=1)) / math.sqrt(len(means))
    width = float(student.ppf((1 + level) / 2, len(means) - 1)) * error
    mean = float(values.mean())
    return Estimate(mean, mean - width, mean + width)


def quantile(weights: Float64Array, level: float) -> float:
    """Two-sided quantile of Student's t with as many degrees of freedom as modes count.

    Modes count by their weights, (Σ w)² / Σ w²: an interval that rests on a few slow modes
    is wider than a normal one, because their spread is itself estimated from a few modes.
    """
    total = float(weights.sum())
    freedom = total**2 / float(weights @ weights) if total > 0 else 1.0
    return float(student.ppf((1 + level) / 2, max(freedom, 1.0)))
