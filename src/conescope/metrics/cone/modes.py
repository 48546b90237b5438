"""The motion of one phase, from distances to independent modes of time.

A motion with stationary increments has a covariance over time that the same orthonormal basis
nearly diagonalises whatever the kind of motion: first the straight line in time, the only mode
that a drift moves, then the Karhunen–Loève modes of Brownian motion about that line. All that
follows works on the mean square in each mode, as Whittle's likelihood works on a periodogram.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from conescope.metrics.distance import Float64Array


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
        """Squared length of each mode's amplitude; [T − 1]."""
        return self.gram.diagonal()

    @property
    def duration(self) -> float:
        """Length L of the phase in iterations."""
        return float(self.times[-1])

    @property
    def gap(self) -> float:
        """The median number of iterations between neighbouring kernels."""
        return float(np.median(np.diff(self.times)))

    def variances(self, squared_displacement: Float64Array) -> Float64Array:
        """Expected power in each mode, of a motion with this mean squared displacement.

        Args:
            squared_displacement: [T, T], E‖k_s − k_t‖² between all pairs of times.

        Returns:
            [T − 1]; the diagonal of −½ Vᵀ D V (Torgerson's double centring in the basis V).
        """
        projected = self.basis * (squared_displacement @ self.basis)
        return np.clip(-0.5 * projected.sum(axis=0), 0.0, None)

    def dimensions(self, jitter: Float64Array, slow: Float64Array) -> Float64Array:
        """Effective number of dimensions in which each mode moves; [T − 1], each at least 1.

        Amplitudes of two modes are independent vectors, and the square of their inner product
        is on average s_k s_m Σ_a λ_ka λ_ma, where λ_ka are the shares of mode k's variance along
        the principal directions a. Jitter and slow motion may have different directions, so the
        sum is a bilinear form in their shares of modes k and m; its three coefficients come from
        all pairs of modes by weighted least squares. On the diagonal it is the inverse of the
        participation ratio 1 / Σ_a λ_a², the degrees of freedom of the χ² that matches the
        power's first two moments (Satterthwaite, Biometrics Bulletin 2:110, 1946).

        Args:
            jitter: [T − 1], expected power of the jitter in each mode.
            slow: [T − 1], expected power of all other random motion.
        """
        total = jitter + slow
        f, h = jitter / total, slow / total
        k, m = 1 + np.stack(np.triu_indices(len(total) - 1, 1))  # the straight line may drift
        squares = self.gram[k, m] ** 2 / (total[k] * total[m])
        terms = np.column_stack([f[k] * f[m], f[k] * h[m] + h[k] * f[m], h[k] * h[m]])
        inverse = np.full(len(squares), squares.mean())
        form = np.zeros(3)
        for _ in range(3):
            form = nnls(terms / inverse[:, None], squares / inverse)[0]
            inverse = np.clip(terms @ form, squares.mean() * 1e-3, None)
        own = form[0] * f * f + 2 * form[1] * f * h + form[2] * h * h
        return 1.0 / np.clip(own, 1e-9, 1.0)


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
    for direction in trend.T:
        brownian -= np.outer(direction, direction @ brownian)
        brownian -= np.outer(brownian @ direction, direction)
    vectors = np.linalg.eigh(brownian)[1][:, :1:-1]
    basis = np.column_stack([trend[:, 1], vectors])
    return Modes(times, basis, basis.T @ gram @ basis)
