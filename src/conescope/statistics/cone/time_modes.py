"""Modes of time: the motion of one phase in nearly independent components.

One orthonormal basis nearly diagonalises the covariance over time of any motion with stationary
increments: first the straight line in time, the only mode in which a drift has power, then the
Karhunen–Loève modes of Brownian motion about that line. The likelihood is one of the power in each
mode, as Whittle's likelihood is one of a periodogram.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from conescope.kernel.distance import Float64Array


@dataclass(frozen=True)
class Modes:
    """The kernels of one phase, expanded in T − 1 modes of time.

    Attributes:
        times: [T], iterations since the phase began.
        basis: [T, T − 1], orthonormal columns, each orthogonal to a constant; the first is the
            straight line in time, the others follow from slow to fast.
        gram: [T − 1, T − 1], inner products of the modes' amplitudes, which are vectors in the
            space of kernels.
    """

    times: Float64Array
    basis: Float64Array
    gram: Float64Array

    @property
    def power(self) -> Float64Array:
        """The power of each mode, the squared length of its amplitude; [T − 1]."""
        return self.gram.diagonal()

    @property
    def duration(self) -> float:
        """The length L of the phase in iterations."""
        return float(self.times[-1])

    @property
    def gap(self) -> float:
        """The median number of iterations between neighbouring kernels."""
        return float(np.median(np.diff(self.times)))

    def variances(self, squared_displacement: Float64Array) -> Float64Array:
        """Return the expected power in each mode, the diagonal of `covariance`; [T − 1]."""
        projected = self.basis * (squared_displacement @ self.basis)
        return np.clip(-0.5 * projected.sum(axis=0), 0.0, None)

    def covariance(self, squared_displacement: Float64Array) -> Float64Array:
        """Return the modes' expected Gram matrix for a motion with this mean squared displacement.

        Args:
            squared_displacement: [T, T], D = E‖k_s − k_t‖² between all pairs of times.

        Returns:
            [T − 1, T − 1]; −½ Vᵀ D V, which is Torgerson's double centring in the basis V.
        """
        return -0.5 * self.basis.T @ squared_displacement @ self.basis


def time_modes(steps: np.ndarray, gram: Float64Array) -> Modes:
    """Expand kernels in modes of time.

    Args:
        steps: [T], iterations, rising; T at least 4.
        gram: [T, T], inner products of the kernels as points of a vector space.
    """
    times = np.asarray(steps, dtype=float)
    times = times - times[0]
    line = times - times.mean()
    trend = np.column_stack([np.full(len(times), len(times) ** -0.5), line / np.linalg.norm(line)])
    lags = np.abs(times[:, None] - times[None, :])
    brownian = -0.5 * lags
    for vector in trend.T:
        brownian -= np.outer(vector, vector @ brownian)
        brownian -= np.outer(brownian @ vector, vector)
    vectors = np.linalg.eigh(brownian)[1][:, :1:-1]
    basis = np.column_stack([trend[:, 1], vectors])
    return Modes(times, basis, basis.T @ gram @ basis)
