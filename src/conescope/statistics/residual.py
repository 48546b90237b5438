"""The residual of a network along the eigenvectors of its kernel, for one kernel or a series.

Under gradient flow of the loss, summed over the samples, the outputs f [n, c] move by
d f / d t = −K r with the full kernel K and the residual r [n, c], the gradient of the loss to the
outputs: softmax(f) − y for cross-entropy, f − y for half the squared error, with one-hot labels y.
If the outputs' kernels are equal and orthogonal (K ⊗ I_c), what of r lies along an eigenvector u_k
of the kernel between samples decays as e^(−λ_k t). All here is of the [n, n] kernel between
samples, not centred; a "full" kernel counts as its class trace.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from conescope.argument_types import checked
from conescope.errors import KernelError
from conescope.kernel.distance import Float64Array
from conescope.kernel.matrix import Kernel
from conescope.kernel.series import KernelSeries
from conescope.statistics.alignment import by_sample, class_members

_ZERO = {
    "residual": "the residual is zero, which lies along nothing: all samples are fitted to the "
    "last digit; take an earlier iteration",
    "labels": "labels that are all the same lie along nothing; take a probe of more classes",
}

Loss = Literal["cross_entropy", "squared"]
"""What is trained, by its name in a recipe; it decides the residual."""


@checked
def residual_spectrum(
    kernel: Kernel, outputs: Tensor, labels: Tensor, loss: Loss = "cross_entropy"
) -> Float64Array:
    """Return the share of the residual along each eigenvector of the kernel; [n].

    With the eigenvectors u_k of K, largest eigenvalue first, and the residual r [n, c]:
    p_k = ‖rᵀ u_k‖² / ‖r‖². The shares sum to 1. Nothing is centred, since K as it is drives the
    outputs, its mean included.

    Args:
        kernel: a kernel of n samples with themselves.
        outputs: [n, c], the network's outputs on the samples; logits for cross-entropy.
        labels: [n], the samples' classes, whole numbers from 0 to c − 1.
        loss: which residual: softmax(f) − y, or f − y for half the squared error.

    Raises:
        KernelError: if the kernel is not square or not finite, the outputs or labels do not fit
            it, or the residual is zero.
    """
    return _shares(_eigenvectors(kernel), _residual(kernel, outputs, labels, loss), "residual")


def spectral_position(shares: Float64Array) -> Float64Array:
    """Return the mean rank Σ_k k p_k of shares along eigenvectors, from 1 to n.

    What lies along the eigenvector k alone has the position k, and what is spread evenly over all
    of them (n + 1) / 2. The eigenvectors' shares of the trace have a position, too.

    Args:
        shares: [n], or [T, n] for one row for each of T kernels: along each eigenvector, largest
            eigenvalue first; at least 0, of any positive sum.

    Returns:
        A number as an array of shape [], or [T].
    """
    ranks = np.arange(1, shares.shape[-1] + 1)
    return np.asarray(shares @ ranks / shares.sum(axis=-1))


@dataclass(frozen=True)
class ResidualSeries:
    """The residual of a network along the eigenvectors of T kernels over training.

    Attributes:
        steps: [T], iterations.
        size: [T], ‖r‖² / n, the mean squared residual of a sample.
        residual: [T, n], `residual_spectrum`.
        labels: [T, n], the same of the one-hot labels y minus the classes' frequencies, which is
            minus the residual of a network that gives every sample these frequencies.
        lost: [T − 1, n], (‖r(t)ᵀ u_k‖² − ‖r(t′)ᵀ u_k‖²) / ‖r(t)‖² for neighbouring steps t and
            t′, along the eigenvectors u_k of the kernel at t: what of the squared residual is
            lost along each. Negative where it grows; the sum is 1 − ‖r(t′)‖² / ‖r(t)‖². Not finite
            where ‖r(t)‖² is below 1e-308.
    """

    steps: np.ndarray
    size: Float64Array
    residual: Float64Array
    labels: Float64Array
    lost: Float64Array


@checked
def residuals(
    steps: Sequence[int],
    kernels: Sequence[Kernel],
    outputs: Sequence[Tensor],
    labels: Tensor,
    loss: Loss = "cross_entropy",
) -> ResidualSeries:
    """Return the residuals of a series of kernels; one kernel is enough.

    Args:
        steps: the T iterations, rising.
        kernels: the T kernels of the same n samples.
        outputs: T times [n, c], the outputs of the networks of the kernels.
        labels: [n], whole numbers from 0 to c − 1, of two classes or more.
        loss: as for `residual_spectrum`.

    Raises:
        KernelError: as `KernelSeries` and `residual_spectrum`, with the step; or if all labels are
            the same, or there are not as many outputs as kernels.
    """
    series = KernelSeries(steps, kernels)
    if len(outputs) != len(series):
        raise KernelError(
            f"{len(series)} kernels need as many outputs, and not {len(outputs)}; leave out the "
            f"kernels without outputs"
        )
    held = []
    for step, kernel, each in zip(series.steps, series.kernels, outputs, strict=True):
        with _at(step):
            held.append(_residual(kernel, each, labels, loss))
    members = class_members(series.kernels[0], labels).T
    centred, found = members - members.mean(dim=0), []
    for step, kernel, r, after in zip(
        series.steps, series.kernels, held, [*held[1:], held[-1]], strict=True
    ):
        with _at(step):
            vectors = _eigenvectors(kernel)
            shares = _shares(vectors, r, "residual"), _shares(vectors, centred, "labels")
        power = _powers(vectors, r)
        with np.errstate(divide="ignore", invalid="ignore"):
            lost = (power - _powers(vectors, after)) / power.sum()
        found.append((power.sum() / len(r), *shares, lost))
    size, residual, of_labels, lost = (np.array(each) for each in zip(*found, strict=True))
    return ResidualSeries(np.array(series.steps), size, residual, of_labels, lost[:-1])


@contextmanager
def _at(step: int) -> Iterator[None]:
    """Let an error in a `with` block name the step."""
    try:
        yield
    except KernelError as error:
        raise KernelError(f"at step {step}, {error}") from error


def _eigenvectors(kernel: Kernel) -> Tensor:
    """Return the eigenvectors as columns, largest eigenvalue first; [n, n], float64."""
    return torch.linalg.eigh(by_sample(kernel)).eigenvectors.flip(1)


def _powers(vectors: Tensor, of: Tensor) -> Float64Array:
    """Return the squared length along each eigenvector of what has n rows; [n]."""
    return (vectors.T @ of).square().sum(dim=1).numpy()


def _shares(vectors: Tensor, of: Tensor, name: str) -> Float64Array:
    """Return the shares along eigenvectors, also where the squares of what is shared underflow."""
    largest = float(of.abs().max())
    if largest == 0.0:
        raise KernelError(_ZERO[name])
    powers = _powers(vectors, of / largest)
    return powers / powers.sum()


def _residual(kernel: Kernel, outputs: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """Return the gradient of each sample's loss to its outputs, [n, c], float64.

    The entry of a sample's own class is minus the sum of the others, which keeps the digits that
    softmax − 1 loses where a sample is fitted.
    """
    n = len(class_members(kernel, labels).T)
    held = outputs.detach().cpu().double().clone()
    if held.dim() != 2 or len(held) != n or not bool(held.isfinite().all()):
        raise KernelError(
            f"a kernel of {n} samples needs finite outputs [{n}, c], not {tuple(outputs.shape)}; "
            f"give the network's outputs on the probe"
        )
    rows, own = torch.arange(n), labels.cpu().long()
    if not 0 <= int(own.min()) <= int(own.max()) < held.shape[1]:
        raise KernelError(
            f"labels from {int(own.min())} to {int(own.max())} are no classes of networks with "
            f"{held.shape[1]} outputs; give the numbers of the outputs that are trained to be large"
        )
    if loss == "squared":
        held[rows, own] -= 1.0
        return held
    if loss != "cross_entropy":
        raise KernelError(f"loss is {loss!r}; give 'cross_entropy' or 'squared'")
    r = held.softmax(dim=1)
    r[rows, own] = 0.0
    r[rows, own] = -r.sum(dim=1)
    return r
