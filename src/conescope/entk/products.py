"""Products of factors, added into a kernel tile by tile, without a Jacobian of all parameters.

Every product comes for two conventions. *Full* keeps the q cotangents apart and adds into a matrix
[I·q, J·q]; otherwise they are summed and the matrix is [I, J]. `other` None means the factors
themselves, and then only tiles on and below the diagonal are touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

_TILES = 4
_TILE_ROWS = 128


class Scratch:
    """Buffers that are allocated once and used again: fresh pages cost more than arithmetic."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, use: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An uninitialised tensor of this shape, valid until the same use takes again."""
        count = 1
        for size in shape:
            count *= size
        buffer = self._buffers.get(use)
        if buffer is None or len(buffer) < count or buffer.dtype != like.dtype:
            self._buffers.pop(use, None)
            buffer = self._buffers[use] = like.new_empty(count)
        return buffer[:count].view(shape)


@dataclass(frozen=True)
class Multiply:
    """Matrix products in the precision asked for."""

    bfloat16: bool = False

    def add(self, out: Tensor, left: Tensor, right: Tensor) -> None:
        """Out += left rightᵀ."""
        if self.bfloat16:
            out += (left @ right.T).to(out.dtype)
        else:
            out.addmm_(left, right.T)


def strips(rows: int, symmetric: bool, columns: int) -> Iterator[tuple[slice, slice]]:
    """Row strips and the columns they need: up to the diagonal where symmetric, else all."""
    height = max(_TILE_ROWS, -(-rows // _TILES))
    for start in range(0, rows, height):
        stop = min(rows, start + height)
        yield slice(start, stop), slice(0, stop if symmetric else columns)


def add_gram(out: Tensor, left: Tensor, right: Tensor | None) -> None:
    """Out += left rightᵀ for matrices [rows, p]; the lower triangle where right is None."""
    other = left if right is None else right
    for rows, columns in strips(len(left), right is None, len(other)):
        out[rows, columns].addmm_(left[rows], other[columns].T)
