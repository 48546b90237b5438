"""The phase boundary t*, where phase II begins: the change point of the kernel velocity."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import chdtri

from conescope.kernel.distance import Float64Array
from conescope.statistics.cone.intervals import Estimate

MINIMUM = 10
"""The fewest kernels in a phase from which its motion is judged."""


@dataclass(frozen=True)
class Boundary:
    """The boundary t* between phase I and phase II.

    Attributes:
        index: place of the first kernel of phase II in the series.
        step: t*, the iteration of that kernel; its confidence interval ends at iterations of
            kernels.
    """

    index: int
    step: Estimate


def phase_boundary(
    steps: np.ndarray, distances: Float64Array, level: float = 0.95, start: int = 0
) -> Boundary | None:
    """Find the change point of the velocity v(t) = S(t, t + dt) / dt (arXiv:2503.16316, eq. 5).

    In phase I, log v is a straight line in log t, with t from the start of the phase; in phase
    II it is constant and lower. Lines and constant are fitted by least squares for every place
    of the change; it is accepted if the Bayesian information criterion prefers it to one
    constant throughout (Bai, Econometric Theory 13:315, 1997, for change points by least
    squares). Neighbouring velocities share a kernel, so the likelihood is tempered by the
    residuals' correlation.

    Args:
        steps: [T], iterations, rising.
        distances: [T, T], kernel distances S.
        level: confidence of the interval, in (0, 1): the places whose likelihood ratio to the
            best lies below the χ² quantile of one degree of freedom.
        start: iteration at which phase I began.

    Returns:
        The boundary; None if there is only one phase, or too few kernels to tell.
    """
    kept = _evenly(np.asarray(steps, dtype=float))
    times = np.asarray(steps, dtype=float)[kept]
    moved = distances[kept[:-1], kept[1:]]
    if len(kept) < MINIMUM + 1 or not (moved > 0).all():
        return None
    velocity = np.log(moved / np.diff(times))
    clock = np.log((times[:-1] + times[1:]) / 2 - start)
    count = len(velocity)
    places = np.arange(1, count - MINIMUM + 2)
    squares, falls = np.array([_two_phases(clock, velocity, int(place)) for place in places]).T
    squares[~falls.astype(bool)] = np.inf
    best = int(squares.argmin())
    if not np.isfinite(squares[best]):
        return None
    size = count / _inflation(clock, velocity, int(places[best]))
    constant = float(((velocity - velocity.mean()) ** 2).sum())
    gain = size * np.log(constant / squares[best])
    if gain < 4 * np.log(count):
        return None
    likely = size * np.log(squares / squares[best]) <= chdtri(1, 1 - level)
    low, high = int(places[likely][0]), int(places[likely][-1])
    first = int(places[best])
    step = Estimate(float(times[first]), float(times[low - 1]), float(times[high]))
    return Boundary(int(kept[first]), step)


def _evenly(times: Float64Array) -> np.ndarray:
    """Return places of kernels with gaps about as long as those that fill most of the training.

    A schedule that is dense at first would otherwise show jitter as a velocity that falls,
    since jitter's S(t, t + dt) does not shrink with dt.
    """
    gaps = np.diff(times)
    order = np.argsort(gaps)
    usual = gaps[order][np.searchsorted(gaps[order].cumsum(), gaps.sum() / 2)]
    kept = [0]
    for place in range(1, len(times)):
        if times[place] - times[kept[-1]] >= 0.9 * usual or gaps[place - 1] >= 0.5 * usual:
            kept.append(place)
    return np.array(kept)


def _two_phases(clock: Float64Array, velocity: Float64Array, place: int) -> tuple[float, bool]:
    """Return the sum of squared residuals for a change at `place`, and whether v falls there."""
    residuals = _residuals(clock, velocity, place)
    falls = velocity[:place].mean() > velocity[place:].mean()
    return float((residuals**2).sum()), bool(falls)


def _residuals(clock: Float64Array, velocity: Float64Array, place: int) -> Float64Array:
    early, late = velocity[:place], velocity[place:]
    x = clock[:place] - clock[:place].mean()
    spread = float(x @ x)
    slope = float(x @ early) / spread if place > 2 else 0.0
    return np.concatenate([early - early.mean() - slope * x, late - late.mean()])


def _inflation(clock: Float64Array, velocity: Float64Array, place: int) -> float:
    """Return how many velocities count as one, by their residuals' correlation at lag one."""
    residuals = _residuals(clock, velocity, place)
    correlation = float(residuals[1:] @ residuals[:-1]) / float(residuals @ residuals)
    return 1.0 + 2.0 * min(max(correlation, 0.0), 0.5)
