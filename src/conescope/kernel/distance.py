"""Kernel distance S and kernel velocity v, eq. 4 and 5 of arXiv:2503.16316.

S = 1 − cos is computed as half the squared chord ½‖K/‖K‖ − K′/‖K′‖‖², with sums in float64. This
keeps the digits that 1 − cos loses: S resolves 1e-10 for float32 kernels. See also Fort et al.,
arXiv:2010.15110.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from conescope.argument_types import checked
from conescope.errors import KernelError
from conescope.kernel.matrix import Kernel

Float64Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def kernel_distance(a: Kernel, b: Kernel) -> float:
    """Return the kernel distance S between two kernels of the same samples.

    Source: arXiv:2503.16316, eq. 4.

    Args:
        a: a kernel of shape [n, m] or [n, c, m, c].
        b: a kernel of the same shape and convention.

    Returns:
        S = 1 − ⟨a, b⟩ / (‖a‖ ‖b‖), in [0, 2]; in [0, 1] for positive semi-definite kernels. It
        does not depend on the scale of either kernel.

    Raises:
        KernelError: if the kernels differ in shape or convention, hold NaN, or are zero.
    """
    check_comparable([a, b])
    u, v = (unit_vector(k) for k in (a, b))
    return 0.5 * float((u - v).square().sum())


@checked
def kernel_velocity(a: Kernel, b: Kernel, dt: float) -> float:
    """Return the kernel velocity v = S(a, b) / dt between two times (arXiv:2503.16316, eq. 5).

    Args:
        a: the kernel at time t.
        b: the kernel at time t + dt.
        dt: the time between the two, in iterations; positive.

    Returns:
        v in 1 / iteration, at least 0.

    Raises:
        KernelError: as `kernel_distance`, and if `dt` is not a positive number.
    """
    if not (dt > 0 and math.isfinite(dt)):
        raise KernelError(f"dt is the time between two kernels and must be positive, not {dt}")
    return kernel_distance(a, b) / dt


def unit_vector(kernel: Kernel) -> Tensor:
    """Return the kernel as a float64 vector of length 1, [n·m·c²].

    Raises:
        KernelError: if the kernel holds NaN or infinite values, or is zero.
    """
    vector = torch.empty(kernel.values.numel(), dtype=torch.float64, device="cpu")
    _write_unit_vector(kernel, vector)
    return vector


def _write_unit_vector(kernel: Kernel, vector: Tensor) -> None:
    vector.copy_(kernel.values.detach().flatten())
    norm = float(torch.linalg.vector_norm(vector))
    if not math.isfinite(norm):
        kernel.check_finite()
        raise KernelError("the kernel's norm overflows float64; divide the kernel by its trace")
    if norm == 0.0:
        raise KernelError(
            "a kernel is zero everywhere, so S to it is undefined: no parameter changes these "
            "outputs; check `params` and frozen parameters"
        )
    vector /= norm


def distance_matrix(kernels: Sequence[Kernel]) -> Float64Array:
    """Return the kernel distances S between all pairs of T kernels, T at least 1.

    The unit vectors are centred on their mean before the product that gives all pairs at once.
    S does not change, and its rounding error shrinks from 1e-16 to 1e-16 times their spread.

    Returns:
        [T, T], float64, symmetric, exactly zero on the diagonal.

    Raises:
        KernelError: as `kernel_distance`, for any pair.
    """
    check_comparable(kernels)
    numbers = kernels[0].values.numel()
    units = torch.empty(len(kernels), numbers, dtype=torch.float64, device="cpu")
    for kernel, row in zip(kernels, units, strict=True):
        _write_unit_vector(kernel, row)
    units -= units.mean(dim=0)
    gram = units @ units.T
    squares = gram.diagonal()
    half_squared_chords = (squares[:, None] + squares[None, :]) / 2 - gram
    distances = ((half_squared_chords + half_squared_chords.T) / 2).clamp_(min=0.0)
    return distances.fill_diagonal_(0.0).numpy()


def check_comparable(kernels: Sequence[Kernel]) -> None:
    """Raise `KernelError` unless there is a kernel, and all agree in shape and convention."""
    if not kernels:
        raise KernelError("there are no kernels; give at least one kernel")
    for k in kernels:
        if not isinstance(k, Kernel):
            raise KernelError(
                f"this compares kernels, not {type(k).__name__}; of Features, give their `kernel`, "
                f"or all of them to KernelSeries"
            )
    first = kernels[0]
    for k in kernels[1:]:
        if k.outputs != first.outputs:
            raise KernelError(
                f"kernels of different conventions cannot be compared: outputs={first.outputs!r} "
                f"and outputs={k.outputs!r}; measure both with the same outputs"
            )
        if k.values.shape != first.values.shape:
            raise KernelError(
                "kernels of different samples cannot be compared: shapes "
                f"{tuple(first.values.shape)} and {tuple(k.values.shape)}; measure both on the "
                "same probe"
            )


def check_square(kernel: Kernel) -> None:
    """Raise `KernelError` unless the kernel is of samples with themselves."""
    shape = tuple(kernel.values.shape)
    if shape[0] != shape[len(shape) // 2]:
        raise KernelError(
            f"this needs a kernel of samples with themselves, not of shape {shape}; compute it "
            "without y"
        )
