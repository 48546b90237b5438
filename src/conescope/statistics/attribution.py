"""Attribution: shares of the kernel's movement between two times, by layer, class and sample.

S is half the squared length of d = k′/‖k′‖ − k/‖k‖ (arXiv:2503.16316, eq. 4), and a squared
length is additive in two ways:

- Over entries, 2 S = Σ_ij d_ij². An entry belongs to a block of two classes, and half of it to
  each of its two samples, so these shares are at least 0.
- Over layers, d = Σ_l d_l with d_l = k′_l/‖k′‖ − k_l/‖k‖ of layer l, and 2 S = Σ_l ⟨d_l, d⟩. A
  layer that moved against the sum has a negative share, and the others add up to more than 1.

S does not depend on the kernel's scale, and neither do the shares: a layer whose kernel only grows
in proportion to the whole kernel has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from conescope.errors import KernelError
from conescope.kernel.distance import Float64Array, check_comparable, check_square, unit_vector
from conescope.kernel.matrix import Kernel
from conescope.statistics.alignment import class_members

TOLERANCE = 1e-3
"""Largest relative error of the sum over layers, whose kernels may be of lower precision."""


@dataclass(frozen=True)
class Attribution:
    """Shares of the movement between two kernels; each kind of share adds up to 1.

    Attributes:
        distance: S between the two kernels.
        images: [n], share of each sample of the probe, at least 0; samples of any kind, not only
            images.
        layers: layer → its share, which may be negative; empty unless both kernels have
            `by_layer`.
        classes: the labels' different values, rising; empty without labels.
        blocks: [c, c], share of the entries between samples of each two classes, at least 0; None
            without labels. Two different classes have two blocks, in either order.
    """

    distance: float
    images: Float64Array
    layers: Mapping[str, float]
    classes: tuple[int, ...]
    blocks: Float64Array | None


def attribution(a: Kernel, b: Kernel, labels: Tensor | None = None) -> Attribution:
    """Attribute the movement of the kernel between two times to samples, layers and classes.

    Args:
        a: the kernel at the first time, of n samples with themselves.
        b: the kernel at the second time, of the same samples and convention.
        labels: [n], the samples' classes, if shares of class blocks are wanted.

    Raises:
        KernelError: if the kernels cannot be compared, are not square or are the same, the
            labels do not fit, or the kernels by layer do not add up to the kernel.
    """
    check_comparable([a, b])
    check_square(a)
    moved = unit_vector(b) - unit_vector(a)
    square = float(moved @ moved)
    if square == 0.0:
        raise KernelError(
            "the two kernels are the same, so there is no movement to attribute; take two other "
            "times"
        )
    entries = moved.square().reshape(a.values.shape) / square
    if a.outputs == "full":
        entries = entries.sum(dim=(1, 3))
    classes, blocks = _by_block(a, entries, labels)
    return Attribution(
        distance=square / 2,
        images=((entries.sum(dim=0) + entries.sum(dim=1)) / 2).numpy(),
        layers=_by_layer(a, b),
        classes=classes,
        blocks=blocks,
    )


def _by_layer(a: Kernel, b: Kernel) -> dict[str, float]:
    if not (a.by_layer and b.by_layer):
        return {}
    if a.by_layer.keys() != b.by_layer.keys():
        raise KernelError(
            f"kernels of different layers cannot be compared: {', '.join(a.by_layer)} and "
            f"{', '.join(b.by_layer)}; measure both with by_layer on the same model"
        )
    before, after = (_parts(kernel) for kernel in (a, b))
    moved = {layer: after[layer] - before[layer] for layer in after}
    whole = torch.stack(list(moved.values())).sum(dim=0)
    square = float(whole @ whole)
    return {layer: float(part @ whole) / square for layer, part in moved.items()}


def _parts(kernel: Kernel) -> dict[str, Tensor]:
    """Return the summand of each layer in the kernel's unit vector; [n·m·c²] each."""
    parts = {
        layer: part.detach().cpu().flatten().double() for layer, part in kernel.by_layer.items()
    }
    whole = torch.stack(list(parts.values())).sum(dim=0)
    length = float(torch.linalg.vector_norm(whole))
    values = kernel.values.detach().cpu().flatten().double()
    if not float(torch.linalg.vector_norm(whole - values)) <= TOLERANCE * length:
        raise KernelError(
            "the kernels by layer do not add up to the kernel; keep those of all layers"
        )
    return {layer: part / length for layer, part in parts.items()}


def _by_block(
    kernel: Kernel, entries: Tensor, labels: Tensor | None
) -> tuple[tuple[int, ...], Float64Array | None]:
    if labels is None:
        return (), None
    members = class_members(kernel, labels)
    return tuple(labels.unique().tolist()), (members @ entries @ members.T).numpy()
