"""Kernel regression on an eNTK, and the condition number of one, with its numerical floor.

Both work on the eigenvalues λ_1 ≥ … ≥ λ_n of the kernel K of n training samples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from conescope.errors import KernelError
from conescope.kernel.distance import Float64Array, check_square
from conescope.kernel.matrix import Kernel
from conescope.statistics.uncertainty import ROUNDING

RIDGES = tuple(10.0**power for power in range(-6, 2))
"""The ridges among which leave-one-out chooses, as multiples of the mean eigenvalue tr(K) / n."""


@dataclass(frozen=True)
class Conditioning:
    """The condition number of a kernel.

    Attributes:
        eigenvalues: [n], all of them, falling.
        floor: the error that rounding makes in each eigenvalue; one below it cannot be told from
            0. For entries with errors of at most δ √(K_ii K_jj) it is δ tr(K) (Weyl's inequality),
            with δ eight machine epsilons of the kernel's precision, as measured.
        number: λ_1 / λ_n, or λ_1 / floor if λ_n lies below the floor.
        is_bound: whether λ_n lies below the floor, so that `number` is only a lower bound.
    """

    eigenvalues: Float64Array
    floor: float
    number: float
    is_bound: bool


def condition_number(kernel: Kernel) -> Conditioning:
    """Return the condition number λ_1 / λ_n of a kernel of n samples with themselves.

    Raises:
        KernelError: if the kernel is not square, is zero, or holds NaN.
    """
    check_square(kernel)
    kernel.check_usable()
    matrix = _symmetric(kernel.matrix.detach().cpu().double().numpy())
    values = np.linalg.eigvalsh(matrix)[::-1].astype(np.float64)
    floor = ROUNDING * torch.finfo(kernel.values.dtype).eps * float(np.trace(matrix))
    least = float(values[-1])
    return Conditioning(values, floor, float(values[0]) / max(least, floor), least < floor)


@dataclass(frozen=True)
class Regression:
    """The predictions of a kernel regression.

    Attributes:
        predictions: [m, c], for the m test samples.
        ridge: the ridge used, as a multiple of the mean eigenvalue tr(K) / n.
        left_out: mean squared error over the n training samples and c targets, each predicted from
            the other n − 1; NaN without a ridge.
    """

    predictions: Float64Array
    ridge: float
    left_out: float


def kernel_regression(
    train: Float64Array,
    cross: Float64Array,
    targets: Float64Array,
    ridge: float | None = None,
) -> Regression:
    """Predict targets of test samples by kernel ridge regression.

    The predictions are K_* (K + ρ tr(K)/n · 1)⁻¹ Y. A ridge ρ that is not given is the one of
    `RIDGES` with the least squared error of leave-one-out, which has the closed form
    [(K + …)⁻¹ Y]_i / [(K + …)⁻¹]_ii (Rasmussen & Williams, Gaussian Processes for Machine
    Learning, 2006, section 5.4.2). With ρ = 0 the inverse is the pseudo-inverse: of a model that
    is linear in its parameters, the predictions are those of least squares.

    Args:
        train: K, the kernel of n training samples, [n, n].
        cross: K_*, the kernel of m test samples with the training samples, [m, n].
        targets: Y, [n, c].
        ridge: ρ, at least 0; None to choose it by leave-one-out.

    Raises:
        KernelError: if the shapes do not fit together, or the kernel is zero or not finite.
    """
    K = _symmetric(np.asarray(train, dtype=np.float64))
    n = len(targets)
    if K.shape != (n, n) or cross.shape[1:] != (n,):
        raise KernelError(
            f"{n} targets need a kernel [{n}, {n}] and one of the test samples [m, {n}], not "
            f"{list(K.shape)} and {list(cross.shape)}"
        )
    if not (np.isfinite(K).all() and np.isfinite(cross).all() and np.trace(K) > 0):
        raise KernelError(
            "a kernel to regress on is zero, or holds NaN or infinite values; look at the weights "
            "and the inputs"
        )
    values, vectors = np.linalg.eigh(K)
    mean = float(values.mean())
    if ridge == 0:
        is_seen = values > n * np.finfo(np.float64).eps * values[-1]
        inverse = np.where(is_seen, 1 / np.where(is_seen, values, 1.0), 0.0)
        return Regression(cross @ ((vectors * inverse) @ (vectors.T @ targets)), 0.0, float("nan"))
    values = np.clip(values, 0.0, None)
    found = []
    for rho in RIDGES if ridge is None else (ridge,):
        inverse = (vectors / (values + rho * mean)) @ vectors.T
        weights = inverse @ targets
        error = float(((weights / np.diagonal(inverse)[:, None]) ** 2).mean())
        found.append((error, -rho, weights))
    error, rho, weights = min(found, key=lambda one: one[:2])  # of equal errors the larger ridge
    return Regression(cross @ weights, -rho, error)


def centred_one_hot(labels: np.ndarray, classes: int) -> Float64Array:
    """Return the targets of a classification by regression: one-hot labels minus 1/c, [n, c]."""
    return np.eye(classes)[labels] - 1 / classes


def _symmetric(matrix: Float64Array) -> Float64Array:
    return (matrix + matrix.T) / 2
