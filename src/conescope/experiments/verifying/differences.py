"""Differences between a stored result and the same result computed again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Difference:
    """The difference between stored tensors and those computed again.

    Attributes:
        size: the largest norm of a tensor's difference, relative to the tensor's norm; infinite
            if names, shapes or types differ, whole numbers do, or something is not finite.
        text: the first entry that differs, with both values.
    """

    size: float
    text: str

    def __str__(self) -> str:
        return f"{self.text}, by {self.size:.1e} of its norm" if self.size < math.inf else self.text


def difference(stored: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> Difference | None:
    """Compare named tensors bit by bit.

    Args:
        stored: name → tensor, as a run folder holds it.
        found: the same, computed again.

    Returns:
        None if all bits are equal.
    """
    if stored.keys() != found.keys():
        names = sorted(stored.keys() ^ found.keys())
        where = "stored" if names[0] in stored else "computed"
        return Difference(math.inf, f"{names[0]} is only {where}")
    unequal = [name for name in sorted(stored) if not _same_bits(stored[name], found[name])]
    if not unequal:
        return None
    size = max(_relative(stored[name], found[name]) for name in unequal)
    return Difference(size, _first(unequal[0], stored[unequal[0]], found[unequal[0]]))


def _same_bits(one: Tensor, other: Tensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def _relative(stored: Tensor, found: Tensor) -> float:
    if (stored.dtype, stored.shape) != (found.dtype, found.shape):
        return math.inf
    if not stored.is_floating_point():
        return math.inf
    one, other = stored.detach().cpu().double(), found.detach().cpu().double()
    distance, norm = float((one - other).norm()), float(other.norm())
    if not (math.isfinite(distance) and math.isfinite(norm)):
        return math.inf
    if norm == 0:
        return 0.0 if distance == 0 else math.inf
    return distance / norm


def _first(name: str, stored: Tensor, found: Tensor) -> str:
    """Say where two tensors differ first."""
    if (stored.dtype, stored.shape) != (found.dtype, found.shape):
        return f"{name} is {_described(stored)}, and comes out as {_described(found)}"
    width = stored.element_size()
    unequal = (_bytes(stored) != _bytes(found)).reshape(-1, width).any(dim=1)
    flat = int(unequal.nonzero()[0])
    place = [int(index) for index in torch.unravel_index(torch.tensor(flat), stored.shape)]
    one, other = (float(t.detach().cpu().reshape(-1)[flat]) for t in (stored, found))
    entry = f"{name}{place}" if place else name
    count = int(unequal.sum())
    among = f"; {count:,} of {unequal.numel():,} entries differ" if place else ""
    return f"{entry} is {one:.9g}, and comes out as {other:.9g}{among}"


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"
