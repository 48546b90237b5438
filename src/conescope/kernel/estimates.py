"""Kernel distances between estimates of kernels, free of the bias of their noise, with errors.

An estimate is the mean of R kernels, one for each random cotangent or group of projected columns.
Kernels of one series share their cotangents and projections, so that much of the noise cancels in
S. What is left is about 1/R of bias and 1/√R of spread; the jackknife over the R parts tells both
(Quenouille, Biometrika 43:353, 1956; Tukey, Annals of Mathematical Statistics 29:614, 1958).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from conescope.errors import KernelError
from conescope.kernel.distance import Float64Array, kernel_distance
from conescope.kernel.features import Features
from conescope.kernel.matrix import Kernel, Outputs

Measured = Kernel | Features
"""A kernel, exact or with its draws, or features whose products estimate one."""

PROJECTED_DRAWS = 8
"""Random cotangents of a projection that is measured, one for each group of columns: standard
errors then cover the choice of the cotangents and of the projection."""

SEED = 0
"""The seed of cotangents and projections, one for all that is measured and compared."""

COTANGENTS = "random cotangents"
"""What is drawn for an estimate by cotangents, see `Randomness.kind`."""

_NUMBERS = 2**24
"""So many numbers of all kernels of a series are held at a time."""


@dataclass(frozen=True)
class EstimatedDistances:
    """The kernel distances S between T estimates by R parts each.

    Attributes:
        plain: [T, T], S between the mean kernels; it is a distance between points, and biased
            upwards by their noise.
        without: [R, T, T], S between the mean kernels without one of the parts.
    """

    plain: Float64Array
    without: Float64Array

    @property
    def corrected(self) -> Float64Array:
        """S without the bias of first order in 1/R; [T, T], at least 0."""
        return np.clip(jackknife(self.plain, self.without)[0], 0.0, None)

    @property
    def errors(self) -> Float64Array:
        """The standard errors of `corrected`, by the spread over the parts; [T, T]."""
        return jackknife(self.plain, self.without)[1]


def jackknife(whole: Float64Array, without: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return a number without its bias of first order, and its standard error.

    Args:
        whole: the number from all R parts, of any shape.
        without: [R, …], the number without one of the parts, R at least 2.
    """
    count, mean = len(without), without.mean(axis=0)
    squares = ((without - mean) ** 2).sum(axis=0)
    return count * whole - (count - 1) * mean, np.sqrt((count - 1) / count * squares)


def check_estimate(
    outputs: Outputs, *, by_layer: bool, draws: int | None, projection: int | None
) -> None:
    """Check that what is to be measured can be estimated in this way.

    Args:
        outputs: see `Kernel.outputs`.
        by_layer: whether the summand of each layer is wanted, too.
        draws: number of random cotangents; None for none.
        projection: number of dimensions to project to; None for none.

    Raises:
        KernelError: if something other than the class trace is to be estimated, in two ways at
            once, by fewer than two draws, or by dimensions that are no multiple of 8.
    """
    if draws is None and projection is None:
        return
    if draws is not None and projection is not None:
        raise KernelError(
            "a kernel is estimated by random cotangents or by a projection, not by both; leave out "
            f"one of them (a projection has {PROJECTED_DRAWS} cotangents of its own)"
        )
    if outputs != "trace" or by_layer:
        way, name = (
            ("random cotangents estimate", "draws")
            if projection is None
            else ("a projection estimates", "projection")
        )
        raise KernelError(
            f"{way} the class trace as a whole; leave out {name}, or choose "
            'outputs="trace" without by_layer'
        )
    if draws is not None and draws < 2:
        raise KernelError(f"a standard error needs at least 2 draws, not {draws}")
    if projection is not None and (projection < 1 or projection % PROJECTED_DRAWS):
        raise KernelError(
            f"a projection is to a positive multiple of {PROJECTED_DRAWS} dimensions, one group of "
            f"columns for each cotangent, not to {projection}"
        )


def projection_kind(draws: int) -> str:
    """Return what is drawn for a projection, see `Randomness.kind`; draws: its cotangents."""
    return f"a projection by {draws} cotangent{'s' if draws > 1 else ''}"


def trace_of(measured: Measured) -> float:
    """Return the trace of a kernel of samples with themselves."""
    if isinstance(measured, Features):
        return float(measured.values.double().square().sum())
    return float(measured.matrix.diagonal().sum())


def measured_distance(a: Measured, b: Measured) -> float:
    """Return the kernel distance S, of two estimates without the bias of their noise.

    Raises:
        KernelError: as `kernel_distance`, and if only one is features, or their parts differ.
    """
    if parts_of([a, b]) is not None:
        return float(estimated_distances([a, b]).corrected[0, 1])
    if isinstance(a, Kernel) and isinstance(b, Kernel):
        return kernel_distance(a, b)
    raise KernelError("kernels and features cannot be compared; measure both in the same way")


def parts_of(measured: Sequence[Measured]) -> int | None:
    """Return the number R of parts of each estimate; None if not all have at least two.

    Raises:
        KernelError: if estimates of different kinds, numbers of parts or seeds are in one series.
    """
    kinds = {_kind(one) for one in measured}
    if len({kind for kind in kinds if kind is not None}) > 1:
        found = " and ".join(sorted(kind[0] for kind in kinds if kind is not None))
        raise KernelError(
            f"estimates of different kinds cannot be compared: {found}; measure all kernels of a "
            f"series with the same draws or projection, and the same seed"
        )
    check_same_randomness(measured)
    kind = kinds.pop()
    return None if kinds or kind is None or kind[1] < 2 else kind[1]


def check_same_randomness(measured: Sequence[Measured]) -> None:
    """Check that estimates were made with the same random numbers, as far as this is known.

    Raises:
        KernelError: if not: their noise would count as a distance.
    """
    known = sorted({str(one.randomness) for one in measured if one.randomness is not None})
    if len(known) > 1:
        raise KernelError(
            f"estimates with different random numbers cannot be compared: {' and '.join(known)}; "
            f"measure all with the same draws or projection, and the same seed"
        )


def _kind(one: Measured) -> tuple[str, int] | None:
    if isinstance(one, Features):
        dim = one.values.shape[1]
        return f"a projection to {dim:,} dimensions in {one.groups} groups", one.groups
    if one.draws is None:
        return None
    return f"{len(one.draws)} random cotangents", len(one.draws)


def without_parts(one: Measured) -> Iterator[Kernel]:
    """Yield the mean kernel of an estimate without each of its R parts, one at a time."""
    if isinstance(one, Kernel):
        assert one.draws is not None
        total = one.draws.sum(dim=0)
        for draw in one.draws:
            yield Kernel((total - draw) / (len(one.draws) - 1))
        return
    whole, count = one.values @ one.values.mT, one.groups
    for part in one.values.chunk(count, dim=1):
        yield Kernel((whole - part @ part.mT) * (count / (count - 1)))


def estimated_distances(measured: Sequence[Measured]) -> EstimatedDistances:
    """Return S between all pairs of T estimates, and S without each of their parts.

    The kernels are walked through in blocks of rows, so that of features no [n, n] kernel is held.
    With u_s the kernel s by its own scale and y_s its difference to their mean, both
    ‖u_s − u_t‖² and ‖u_s‖² − ‖u_t‖² follow from products of the small y, which keeps the digits
    of a small S.

    Args:
        measured: T estimates of equal shape and R; see `parts_of`.

    Raises:
        KernelError: if an estimate is zero, also without one of its parts, or not finite.
    """
    count, parts = len(measured), parts_of(measured)
    if parts is None:
        raise KernelError("an exact kernel has no draws; take kernel_distance")
    scales = torch.tensor([1.0 / _size(one) for one in measured], dtype=torch.float64)
    products = torch.zeros(parts + 1, count + 1, count + 1, dtype=torch.float64)
    for block in _blocks(measured, parts):
        scaled = block.mul_(scales[:, None, None])
        total = scaled.sum(dim=1)
        for variant in range(parts + 1):
            rest, weight = (total, parts) if variant == parts else (
                total - scaled[:, variant], parts - 1
            )  # fmt: skip
            mean = rest.mean(dim=0, keepdim=True)
            rows = torch.cat([rest - mean, mean]) / weight
            products[variant] += rows @ rows.T
    distances = np.stack([_distances(one) for one in products.numpy()])
    return EstimatedDistances(distances[-1], distances[:-1])


def _distances(products: Float64Array) -> Float64Array:
    """Return S from the inner products of T centred kernels and, as the last one, their mean."""
    gram, with_mean, mean = products[:-1, :-1], products[:-1, -1], products[-1, -1]
    squares = gram.diagonal()
    lengths = np.sqrt(squares + 2 * with_mean + mean)
    if not (lengths > 0).all():
        raise KernelError(
            "an estimate without one of its draws is zero everywhere, so it has no standard "
            "error; take more draws, or look at the weights"
        )
    apart = squares[:, None] + squares[None, :] - gram - gram.T
    longer = squares + 2 * with_mean
    differ = (longer[:, None] - longer[None, :]) / (lengths[:, None] + lengths[None, :])
    found = (apart - differ**2) / (2 * np.outer(lengths, lengths))
    np.fill_diagonal(found, 0.0)
    return np.clip(found, 0.0, None)


def _size(one: Measured) -> float:
    """Return a number that is proportional to the scale of a kernel.

    Raises:
        KernelError: if it is zero or not finite.
    """
    values = one.values.detach().double()
    size = float(values.norm()) ** (2 if isinstance(one, Features) else 1)
    if size == 0.0 or not math.isfinite(size):
        raise KernelError(
            "an estimate is zero everywhere, or holds NaN or infinite values; look at the weights "
            "and the inputs, or choose other parameters"
        )
    return size


def _blocks(measured: Sequence[Measured], parts: int) -> Iterator[Tensor]:
    """Yield the entries of all kernels, some rows at a time; [T, R, entries], float64.

    A kernel of features is symmetric: entries right of the rows' own columns count twice, so they
    come once, times √2.
    """
    rows, columns = measured[0].values.shape
    if isinstance(measured[0], Features):
        columns = rows
    step = max(1, _NUMBERS // (len(measured) * parts * columns))
    for start in range(0, rows, step):
        yield torch.stack([_block(one, start, start + step) for one in measured])


def _block(one: Measured, start: int, stop: int) -> Tensor:
    if isinstance(one, Kernel):
        assert one.draws is not None
        return one.draws[:, start:stop].detach().cpu().double().flatten(1)
    grouped = one.values.detach().cpu().unflatten(1, (one.groups, -1)).movedim(1, 0)
    entries = (one.groups * (grouped[:, start:stop] @ grouped[:, start:].mT)).double()
    entries[:, :, stop - start :] *= math.sqrt(2.0)
    return entries.flatten(1)
