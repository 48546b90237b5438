"""Alignment of a kernel with the labels and with other kernels, for one kernel or a series.

All alignments are of the [n, n] kernel between samples; a "full" kernel counts as its class trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from conescope.errors import KernelError
from conescope.kernel.distance import Float64Array, check_comparable, check_square
from conescope.kernel.matrix import Kernel
from conescope.kernel.series import KernelSeries


def target_alignment(kernel: Kernel, labels: Tensor) -> float:
    """Return the kernel–target alignment ⟨K, L⟩ / (‖K‖ ‖L‖) with L = Y Yᵀ of one-hot labels.

    L_ij is 1 within a class and 0 between classes (Cristianini et al., NIPS 2001). Nothing is
    centred: a constant kernel has the alignment 1 / √c with c balanced classes.

    Args:
        kernel: a kernel of n samples with themselves.
        labels: [n], the samples' classes, whole numbers.

    Returns:
        A cosine, in [0, 1] for positive semi-definite kernels.

    Raises:
        KernelError: if the kernel is not square or is zero, or the labels do not fit it.
    """
    return _cosine(by_sample(kernel), label_kernel(kernel, labels))


def centred_alignment(a: Kernel, b: Kernel) -> float:
    """Return the centred alignment (CKA) of two kernels of the same samples, in [−1, 1].

    ⟨HAH, HBH⟩ / (‖HAH‖ ‖HBH‖) with H = I − 11ᵀ/n (Cortes, Mohri & Rostamizadeh, JMLR 13:795,
    2012; Kornblith et al., arXiv:1905.00414). Without centring it is 1 − S.

    Raises:
        KernelError: if the kernels cannot be compared, are not square, or one is constant.
    """
    check_comparable([a, b])
    return _cosine(_centred(by_sample(a)), _centred(by_sample(b)))


def centred_target_alignment(kernel: Kernel, labels: Tensor) -> float:
    """Return the centred alignment (CKA) of a kernel with the label kernel, in [−1, 1].

    Args:
        kernel: a kernel of n samples with themselves.
        labels: [n], the samples' classes, whole numbers.

    Raises:
        KernelError: as `target_alignment`, or if the kernel is constant or all labels are the same.
    """
    return _cosine(_centred(by_sample(kernel)), _centred(label_kernel(kernel, labels)))


def class_blocks(kernel: Kernel, labels: Tensor) -> Float64Array:
    """Return the mean of K_ij over the pairs of samples i ≠ j of each two classes; [c, c].

    The classes are the labels' different values, rising. The diagonal is left out, since K_ii
    says nothing of a class; a class of one sample has NaN with itself.

    Raises:
        KernelError: as `target_alignment`.
    """
    values = by_sample(kernel)
    members = class_members(kernel, labels)
    sums = members @ (values - torch.diag(values.diagonal())) @ members.T
    sizes = members.sum(dim=1)
    pairs = sizes[:, None] * sizes[None, :] - torch.diag(sizes)
    return (sums / pairs).numpy()


def label_spectrum(kernel: Kernel, labels: Tensor) -> Float64Array:
    """Return the share of the labels along each eigenvector of the centred kernel; [n].

    With the eigenvectors u_k of H K H, largest eigenvalue first, and one-hot labels Y, centred:
    ‖Yᵀ u_k‖² / ‖H Y‖². The shares sum to 1. Gradient flow learns what lies along u_k at a rate that
    is proportional to its eigenvalue (Arora et al., arXiv:1901.08584).

    Args:
        kernel: a kernel of n samples with themselves.
        labels: [n], the samples' classes, whole numbers.

    Raises:
        KernelError: as `target_alignment`, or if all labels are the same.
    """
    members = class_members(kernel, labels)
    return _label_shares(_centred(by_sample(kernel)), members - members.mean(dim=1, keepdim=True))


def _label_shares(centred: Tensor, labels: Tensor) -> Float64Array:
    power = float((labels**2).sum())
    if power == 0.0:
        raise KernelError("labels that are all the same lie along nothing; take more classes")
    vectors = torch.linalg.eigh(centred).eigenvectors.flip(1)
    return ((labels @ vectors) ** 2).sum(dim=0).numpy() / power


@dataclass(frozen=True)
class AlignmentSeries:
    """Alignments of T kernels over training.

    Attributes:
        steps: [T], iterations.
        target: [T], `target_alignment`.
        centred_target: [T], `centred_target_alignment`.
        centred_first: [T], `centred_alignment` with the first kernel.
        within: [T], mean of K_ij over pairs i ≠ j of one class.
        between: [T], mean of K_ij over pairs of different classes.
        labels_within: [T, n], `label_spectrum`, summed from the largest eigenvalue on.
    """

    steps: np.ndarray
    target: Float64Array
    centred_target: Float64Array
    centred_first: Float64Array
    within: Float64Array
    between: Float64Array
    labels_within: Float64Array


def alignments(steps: Sequence[int], kernels: Sequence[Kernel], labels: Tensor) -> AlignmentSeries:
    """Return the alignments of a series of kernels; one kernel is enough.

    Args:
        steps: the T iterations, rising.
        kernels: the T kernels of the same n samples.
        labels: [n], whole numbers, of two classes or more, one of which has two samples or more.

    Raises:
        KernelError: as `KernelSeries` and the functions for one kernel; a kernel that is zero or
            holds NaN is named by its step.
    """
    series = KernelSeries(steps, kernels)
    series.check_usable()
    target = label_kernel(kernels[0], labels)
    same = target.bool() & ~torch.eye(len(target), dtype=torch.bool)
    other = ~target.bool()
    if not (bool(same.any()) and bool(other.any())):
        raise KernelError(
            "alignment with labels needs at least two classes, and one with two samples; take "
            "a larger or a stratified probe"
        )
    centred_target, first = _centred(target), _centred(by_sample(kernels[0]))
    members = class_members(kernels[0], labels)
    members = members - members.mean(dim=1, keepdim=True)
    rows, shares = [], []
    for kernel in kernels:
        value = by_sample(kernel)
        centred = _centred(value)
        cosines = (
            _cosine(value, target), _cosine(centred, centred_target), _cosine(centred, first)
        )  # fmt: skip
        rows.append((*cosines, float(value[same].mean()), float(value[other].mean())))
        shares.append(_label_shares(centred, members))
    within = np.cumsum(shares, axis=1)
    return AlignmentSeries(np.array(series.steps), *np.array(rows).T, labels_within=within)


def label_kernel(kernel: Kernel, labels: Tensor) -> Tensor:
    """Return L = Y Yᵀ of one-hot labels: 1 within a class, 0 between; [n, n], float64.

    Raises:
        KernelError: if the kernel is not square or the labels do not fit it.
    """
    members = class_members(kernel, labels)
    return members.T @ members


def class_members(kernel: Kernel, labels: Tensor) -> Tensor:
    """Return 1 where a sample is of a class, else 0; [c, n], classes rising, float64.

    Raises:
        KernelError: if the kernel is not square, or has no whole-number label for each sample.
    """
    check_square(kernel)
    n = kernel.values.shape[0]
    if tuple(labels.shape) != (n,):
        raise KernelError(
            f"a kernel of {n} samples needs {n} labels, not labels of shape {tuple(labels.shape)}; "
            "give the probe's labels, in the probe's order"
        )
    if labels.is_floating_point():
        raise KernelError(f"labels are the classes' whole numbers, not {labels.dtype}")
    labels = labels.cpu()
    return (labels.unique()[:, None] == labels[None, :]).double()


def by_sample(kernel: Kernel) -> Tensor:
    """Return the kernel between samples, [n, n], float64: of a "full" one its class trace.

    Raises:
        KernelError: if the kernel is not square, or not finite.
    """
    check_square(kernel)
    kernel.check_finite()
    values = kernel.values.detach().cpu().double()
    return torch.einsum("ikjk->ij", values) if kernel.outputs == "full" else values


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(dim=0) - values.mean(dim=1, keepdim=True) + values.mean()


def _cosine(a: Tensor, b: Tensor) -> float:
    lengths = float(torch.linalg.vector_norm(a)) * float(torch.linalg.vector_norm(b))
    if lengths == 0.0:
        raise KernelError(
            "alignment with a kernel that is constant (or labels that are all the same) is "
            "undefined; take more samples, or of more classes"
        )
    return float((a * b).sum()) / lengths
