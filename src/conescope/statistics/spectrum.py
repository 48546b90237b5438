"""Spectrum of one kernel or of a series: eigenvalues, effective rank, eigenspaces, sharpness.

The kernel is taken as one symmetric matrix of N rows: [n, n], or [n·c, n·c] for "full".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from conescope.errors import KernelError
from conescope.kernel.distance import Float64Array, check_square
from conescope.kernel.matrix import Kernel
from conescope.kernel.series import KernelSeries

TOP = 10
"""Number of eigenvalues that are kept: as many as MNIST and CIFAR-10 have classes."""


@dataclass(frozen=True)
class Spectrum:
    """The spectrum of one kernel.

    Attributes:
        eigenvalues: [k], the largest ones, falling.
        eigenvectors: [N, k], their eigenvectors, as columns of length 1.
        trace: sum of all N eigenvalues.
        effective_rank: e^H of the entropy H of the singular values' shares of their sum (Roy &
            Vetterli, EUSIPCO 2007), from 1 for a kernel of rank one to N for the identity.
    """

    eigenvalues: Float64Array
    eigenvectors: Float64Array
    trace: float
    effective_rank: float


def spectrum(kernel: Kernel, top: int = TOP) -> Spectrum:
    """Return the eigenvalues and leading eigenvectors of a kernel, in float64.

    Args:
        kernel: a kernel of n samples with themselves.
        top: number k of eigenvalues to keep, at least 1; at most all N are kept.

    Raises:
        KernelError: if the kernel is not square, is zero, or holds NaN, or `top` is below 1.
    """
    check_square(kernel)
    if top < 1:
        raise KernelError(f"at least one eigenvalue is kept, not {top}")
    values, vectors = torch.linalg.eigh(_symmetric_matrix(kernel))
    return Spectrum(
        eigenvalues=values.flip(0)[:top].numpy(),
        eigenvectors=vectors.flip(1)[:, :top].numpy(),
        trace=float(values.sum()),
        effective_rank=_effective_rank(values.abs()),
    )


def eigenspace_overlap(a: Spectrum, b: Spectrum) -> float:
    """Return how much of the leading eigenspace of one kernel lies in that of another.

    Returns:
        ‖UᵀV‖²_F / k for the [N, k] eigenvectors U and V, which is the mean squared cosine of the
        principal angles between the two spaces (Björck & Golub, Mathematics of Computation
        27:579, 1973): 1 for the same space, 0 for orthogonal spaces, k / N for random ones.

    Raises:
        KernelError: if the two differ in N or k.
    """
    U, V = a.eigenvectors, b.eigenvectors
    if U.shape != V.shape:
        raise KernelError(
            f"eigenspaces of shapes {U.shape} and {V.shape} cannot be compared; take both of the "
            "same samples and with the same `top`"
        )
    return float(((U.T @ V) ** 2).sum() / U.shape[1])


@dataclass(frozen=True)
class SpectrumSeries:
    """Spectra of T kernels over training.

    Attributes:
        steps: [T], iterations.
        eigenvalues: [T, k], the largest ones, falling along each row.
        trace: [T], as in `Spectrum`.
        effective_rank: [T], as in `Spectrum`.
        overlap_with_first: [T], `eigenspace_overlap` with the first kernel.
        overlap_with_previous: [T − 1], `eigenspace_overlap` of each kernel with the one before.
    """

    steps: np.ndarray
    eigenvalues: Float64Array
    trace: Float64Array
    effective_rank: Float64Array
    overlap_with_first: Float64Array
    overlap_with_previous: Float64Array


def spectra(steps: Sequence[int], kernels: Sequence[Kernel], top: int = TOP) -> SpectrumSeries:
    """Return the spectra of a series of kernels; one kernel is enough.

    Args:
        steps: the T iterations, rising.
        kernels: the T kernels of the same samples.
        top: number k of eigenvalues to keep.

    Raises:
        KernelError: as `KernelSeries` and `spectrum`; a kernel that is zero or holds NaN is named
            by its step.
    """
    series = KernelSeries(steps, kernels)
    series.check_usable()
    found = [spectrum(kernel, top) for kernel in kernels]
    return SpectrumSeries(
        steps=np.array(series.steps),
        eigenvalues=np.array([one.eigenvalues for one in found]),
        trace=np.array([one.trace for one in found]),
        effective_rank=np.array([one.effective_rank for one in found]),
        overlap_with_first=np.array([eigenspace_overlap(one, found[0]) for one in found]),
        overlap_with_previous=np.array(
            [eigenspace_overlap(*pair) for pair in zip(found[1:], found, strict=False)]
        ),
    )


def sharpness(top: float | Float64Array, kernel: Kernel, classes: int) -> float | Float64Array:
    """Return λ_max(K) as a curvature of the loss, to compare with 2 / η.

    Gradient descent of learning rate η on a quadratic is stable while the Hessian's largest
    eigenvalue stays below 2 / η (Cohen et al., arXiv:2103.00065). For half the squared error,
    summed over outputs and averaged over the n samples, the Gauss–Newton part JᵀJ / n of the
    Hessian has the eigenvalues of K / n, with K the full kernel.

    - "full": λ_max(K) / n is this curvature.
    - "sum" or one output k: λ_max(K) / n is the curvature of a loss of this one number. The full
      kernel's is at least that of "k", and at least 1/c of that of "sum".
    - "trace": λ_max(K) / (n c) is the least curvature that the full kernel can have. The two are
      equal where the outputs' kernels are equal and orthogonal (K ⊗ I_c, the limit of infinite
      width); the full kernel's is at most c² times as large.

    Cross-entropy multiplies by the logits' Hessian diag(p) − p pᵀ, whose eigenvalues lie in
    [0, 1/2] and vanish as training samples are fitted: its Gauss–Newton part is at most half of
    the full kernel's curvature. The part of the Hessian beyond Gauss–Newton is left out.

    Args:
        top: λ_max of the kernel, or an array of several kernels' λ_max.
        kernel: a kernel of this shape and convention.
        classes: number c of the network's outputs.

    Raises:
        KernelError: if `classes` is below 1.
    """
    if classes < 1:
        raise KernelError(f"a network has at least one output, not {classes}")
    n = kernel.values.shape[0]
    return top / (n * classes) if kernel.outputs == "trace" else top / n


def _symmetric_matrix(kernel: Kernel) -> Tensor:
    kernel.check_usable()
    matrix = kernel.matrix.detach().cpu().double()
    return (matrix + matrix.T) / 2


def _effective_rank(singular: Tensor) -> float:
    shares = singular / singular.sum()
    return float(torch.special.entr(shares).sum().exp())
