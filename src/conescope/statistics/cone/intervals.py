"""Numbers with confidence intervals, read from fitted motions and from correlated values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtrit

from conescope.kernel.distance import Float64Array
from conescope.statistics.cone.dimension import concentration
from conescope.statistics.cone.motions import Fit, Likelihood, Parts


@dataclass(frozen=True)
class Estimate:
    """A number with its confidence interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def of_radius(fits: Sequence[Fit], weights: Float64Array, level: float) -> Estimate:
    """Return R, the root of jitter's σ² plus the confined motion's R², averaged over models."""
    logarithms, variances = zip(*(_log_radius(fit) for fit in fits), strict=True)
    best = fits[int(np.argmax(weights))]
    return _averaged(logarithms, variances, weights, quantile(_radius_information(best), level))


def of_relaxation(fits: Sequence[Fit], weights: Float64Array, level: float) -> Estimate:
    """Return τ_c in iterations, averaged over models that all have a confined part."""
    best = fits[int(np.argmax(weights))]
    return _averaged(
        [fit.shape for fit in fits],
        [float(fit.covariance[-1, -1]) for fit in fits],
        weights,
        quantile(best.information[-1], level),
    )


def of_shape(likelihood: Likelihood, parts: Parts, level: float) -> Estimate:
    """Return the shape parameter of a sum of motions, by its profile likelihood.

    The interval holds the values whose likelihood ratio to the best lies below the squared
    quantile of Student's t. It ends where the grid of values does, if not before.

    Args:
        likelihood: the likelihood, given the data.
        parts: the motions, one of which has a shape parameter.
        level: confidence, in (0, 1).
    """
    best = likelihood.fit(parts)
    grid = likelihood.spectra.grid(parts)[::2]
    rise = np.array([likelihood.fit(parts, shape).deviance for shape in grid]) - best.deviance
    limit = quantile(best.information[-1], level) ** 2
    below, above = grid <= best.shape, grid >= best.shape
    low = _crossing(best.shape, grid[below][::-1], rise[below][::-1], limit)
    high = _crossing(best.shape, grid[above], rise[above], limit)
    return Estimate(best.shape, low, high)


def of_extent(likelihood: Likelihood, fit: Fit, level: float) -> Estimate:
    """Return the root mean square distance of a phase's kernels from their mean, √(Σ_k g_k / T).

    The variance of Σ_k g_k is 2 Σ_km s_km² / √(q_k q_m) for random motion, with s_km its
    expected Gram matrix. A drift of fixed amplitude m adds 4 m² s / q.
    """
    modes, q = likelihood.modes, likelihood.dimensions
    lags = np.abs(modes.times[:, None] - modes.times[None, :])
    displacement = fit.squared_displacement(lags, modes.duration)
    np.fill_diagonal(displacement, 0.0)
    expected = modes.covariance(displacement)
    expected[0, 0] = max(expected[0, 0] - fit.steady, 0.0)
    variance = 2 * float((expected**2 / np.sqrt(np.outer(q, q))).sum())
    variance += 4 * fit.steady * float(expected[0, 0] / q[0])
    total = float(modes.power.sum())
    extent = math.sqrt(total / len(modes.times))
    width = _normal(level) * math.sqrt(variance) / total / 2
    return Estimate(extent, extent * math.exp(-width), extent * math.exp(width))


def of_dimension(likelihood: Likelihood, fit: Fit, level: float) -> Estimate:
    """Return the participation ratio (tr Λ)² / tr Λ² of the motion's covariance Λ, without bias.

    Λ is that of jitter, slow motion and drift over the phase; a drift has one dimension. The upper
    end is infinite if the kernels are too few to bound the dimension from above.
    """
    jitter, slow = fit.random
    told = concentration(likelihood.modes.gram[1:, 1:], jitter[1:], slow[1:])
    total = float(jitter.sum() + slow.sum()) + fit.steady
    steady = fit.steady / total
    random, spread = told.of_mix(float(jitter.sum()) / total, float(slow.sum()) / total)
    value, width = random + steady**2, _normal(level) * spread
    ends = (min(max(end, 0.0), 1.0) for end in (value, value + width, value - width))
    return Estimate(*(1.0 / end if end > 0 else math.inf for end in ends))


def of_mean(values: Float64Array, level: float, batches: int = 4) -> Estimate:
    """Return the mean of correlated values, with an interval by non-overlapping batch means.

    The batches are few, since each must outlast the correlation (Schmeiser, Operations Research
    30:556, 1982).
    """
    means = np.array([batch.mean() for batch in np.array_split(values, min(batches, len(values)))])
    error = float(means.std(ddof=1)) / math.sqrt(len(means))
    width = float(stdtrit(len(means) - 1, (1 + level) / 2)) * error
    mean = float(values.mean())
    return Estimate(mean, mean - width, mean + width)


def of_mean_square(values: Float64Array, level: float) -> Estimate:
    """Return the mean of correlated squared lengths: `of_mean`, its interval in logarithms."""
    mean = of_mean(values, level)
    factor = math.exp(min((mean.high - mean.value) / mean.value, 700.0))
    return Estimate(mean.value, mean.value / factor, mean.value * factor)


def quantile(information: Float64Array, level: float) -> float:
    """Return the two-sided quantile of Student's t for a parameter.

    With w the information of each mode on the parameter, the modes count as m = (Σ w)² / Σ w².
    Their dispersion 1 / q is estimated from m (m − 1) / 2 pairs, which are the degrees of freedom.
    """
    total = float(information.sum())
    count = total**2 / float(information @ information) if total > 0 else 1.0
    return float(stdtrit(max(count * (count - 1) / 2, 1.0), (1 + level) / 2))


def _normal(level: float) -> float:
    return float(ndtri((1 + level) / 2))


def _log_radius(fit: Fit) -> tuple[float, float]:
    """Return the logarithm of R and its variance, by the delta method."""
    places = [fit.parts.index(part) for part in ("jitter", "confined") if part in fit.parts]
    squares = np.array([fit.amplitudes[fit.parts[place]] for place in places])
    gradient = squares / squares.sum() / 2
    variance = float(gradient @ fit.covariance[np.ix_(places, places)] @ gradient)
    return math.log(squares.sum()) / 2, variance


def _radius_information(fit: Fit) -> Float64Array:
    """Return the information of each mode on the larger of σ² and R²."""
    stationary = [part for part in ("jitter", "confined") if part in fit.parts]
    return fit.information[fit.parts.index(max(stationary, key=lambda p: fit.amplitudes[p]))]


def _averaged(
    logarithms: Sequence[float], variances: Sequence[float], weights: Float64Array, width: float
) -> Estimate:
    """Return the average over models of a number that is given by its logarithm.

    The variance is that within the models plus that between them (Hoeting et al., Statistical
    Science 14:382, 1999).
    """
    x, shares = np.array(logarithms), weights / weights.sum()
    mean = float(shares @ x)
    spread = math.sqrt(float(shares @ (np.array(variances) + (x - mean) ** 2)))
    low, high = np.exp(np.clip([mean - width * spread, mean + width * spread], -700, 700))
    return Estimate(math.exp(mean), float(low), float(high))


def _crossing(start: float, grid: Float64Array, rise: Float64Array, limit: float) -> float:
    """Return where the rise first passes the limit, from the best value `start` along the grid."""
    places, rises = np.append(start, grid), np.append(0.0, rise)
    over = np.flatnonzero(rises > limit)
    if len(over) == 0:
        return float(places[-1])
    k = int(over[0])
    # A deviance is a parabola near its lowest point: interpolate its root.
    near, far = math.sqrt(max(rises[k - 1], 0.0)), math.sqrt(rises[k])
    share = (math.sqrt(limit) - near) / (far - near)
    return float(places[k - 1] + share * (places[k] - places[k - 1]))
