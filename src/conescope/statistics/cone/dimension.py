"""The dimension in which the kernel moves: the participation ratio of jitter and slow motion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import lsq_linear

from conescope.kernel.distance import Float64Array

UNRESOLVED = 0.05
"""Share of the mean concentration over pairs of modes below which no concentration is resolved."""

_RESOLVED = 1e-12
"""Share of the largest singular value from which on the pairs of modes resolve a direction."""


@dataclass(frozen=True)
class Concentration:
    """The concentration, 1 / dimension, of any mix of jitter and slow motion.

    Let λ_a be the shares of jitter's variance along the principal axes a, and μ_a those of slow
    motion. A mix in the proportions f : h has the shares f λ + h μ, and its concentration
    Σ_a (f λ_a + h μ_a)² is a quadratic form in (f, h).

    Attributes:
        form: [3], Σ λ², Σ λμ, Σ μ²; each in [0, 1].
        covariance: [3, 3], the covariance of the errors of `form`.
        least: the least concentration that the data resolve.
    """

    form: Float64Array
    covariance: Float64Array
    least: float

    def dimensions(self, jitter: Float64Array, slow: Float64Array) -> Float64Array:
        """Return the participation ratio 1 / Σ share² of each of M mixes; [M], each at least 1.

        It is the number of degrees of freedom of the χ² that matches the first two moments of
        the squared length of a Gaussian vector with these shares (Satterthwaite, Biometrics
        Bulletin 2:110, 1946).

        Args:
            jitter: [M], variance of the jitter in each mix.
            slow: [M], variance of the slow motion in each mix.
        """
        total = jitter + slow
        concentration = _terms(jitter / total, slow / total) @ self.form
        return 1.0 / np.clip(concentration, self.least, 1.0)

    def of_mix(self, jitter: float, slow: float) -> tuple[float, float]:
        """Return the concentration of one mix, and its standard error for these variances."""
        terms = _terms(np.array([jitter]), np.array([slow]))[0]
        variance = float(terms @ self.covariance @ terms)
        return float(terms @ self.form), math.sqrt(max(variance, 0.0))


def concentration(gram: Float64Array, jitter: Float64Array, slow: Float64Array) -> Concentration:
    """Estimate the concentration of jitter, of slow motion, and of their mixes.

    The amplitudes of two modes of time are independent vectors. The square of their inner
    product is on average the product of their variances times the concentration, bilinear in
    their two mixes, and its standard deviation is √2 times that (the square of a normal
    variable). All pairs of modes give the three coefficients by weighted least squares.

    Args:
        gram: [M, M], inner products of the amplitudes of M modes without a steady part.
        jitter: [M], expected power of the jitter in each mode.
        slow: [M], expected power of all other motion.
    """
    total = jitter + slow
    f, h = jitter / total, slow / total
    k, m = np.triu_indices(len(total), 1)
    squares = gram[k, m] ** 2 / (total[k] * total[m])
    terms = np.column_stack([f[k] * f[m], f[k] * h[m] + h[k] * f[m], h[k] * h[m]])
    least = UNRESOLVED * float(squares.mean())
    expected, form = np.full(len(squares), squares.mean()), np.zeros(3)
    for _ in range(3):
        weighted = terms / expected[:, None]
        form = lsq_linear(weighted, squares / expected, (0.0, 1.0), method="bvls").x
        expected = np.clip(terms @ form, least, None)
    weighted = terms / expected[:, None]
    scores = weighted * (squares / expected - weighted @ form)[:, None]
    return Concentration(form, _covariance(weighted, scores, k, m, len(total)), least)


def _covariance(
    weighted: Float64Array, scores: Float64Array, k: np.ndarray, m: np.ndarray, count: int
) -> Float64Array:
    """Return the covariance of least squares over pairs, which are dependent if they share a mode.

    Source: Aronow, Samii & Assenova, Political Analysis 23:564 (2015), for dyadic data.
    """
    by_mode = np.column_stack(
        [np.bincount(k, s, count) + np.bincount(m, s, count) for s in scores.T]
    )
    # by the singular values of the pairs themselves: squares of the small ones would be rounding
    _, values, axes = np.linalg.svd(weighted, full_matrices=False)
    resolved = values > _RESOLVED * values[0]
    axes = axes[resolved].T
    inner = axes.T @ (by_mode.T @ by_mode - scores.T @ scores) @ axes
    return axes @ (inner / np.outer(values[resolved], values[resolved]) ** 2) @ axes.T


def _terms(f: Float64Array, h: Float64Array) -> Float64Array:
    return np.stack([f * f, 2 * f * h, h * h], axis=-1)
