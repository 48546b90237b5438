"""The mean squared displacement of the kernel against lag."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conescope.errors import KernelError
from conescope.kernel.distance import Float64Array


@dataclass(frozen=True)
class Displacement:
    """The mean squared displacement E‖k(t + dt) − k(t)‖² = 2 S(t, t + dt), averaged over t.

    Attributes:
        lags: [J], mean lag dt of each bin, in iterations, rising.
        mean: [J], the mean squared displacement.
        pairs: [J], number of pairs of kernels in each bin.
    """

    lags: Float64Array
    mean: Float64Array
    pairs: np.ndarray


def mean_squared_displacement(steps: np.ndarray, distances: Float64Array) -> Displacement:
    """Average the squared chord 2 S over all pairs of kernels of about the same lag.

    Lags are binned in whole numbers of the median gap, so that with even steps a bin holds one
    lag.

    Args:
        steps: [T], iterations, rising; T at least 2.
        distances: [T, T], kernel distances S.

    Raises:
        KernelError: if there are fewer than two kernels.
    """
    if len(steps) < 2:
        raise KernelError(
            f"a displacement needs at least two kernels, not {len(steps)}; take kernels more "
            "often, or train on"
        )
    first, second = np.triu_indices(len(steps), 1)
    lags = (steps[second] - steps[first]).astype(float)
    gap = float(np.median(np.diff(steps)))
    _, bins, pairs = np.unique(np.rint(lags / gap), return_inverse=True, return_counts=True)
    squares = 2.0 * distances[first, second]
    return Displacement(
        lags=np.bincount(bins, lags) / pairs, mean=np.bincount(bins, squares) / pairs, pairs=pairs
    )
