"""Random projections of matrices that are sums of outer products, by count sketches of the factors.

A count sketch of a vector adds up its entries, with random signs, in random slots (Charikar et al.,
2002). That of a matrix with rows i and columns j puts entry (i, j) into slot h(i) + h′(j) with the
sign s(i) s′(j); then the sketch of an outer product is the circular convolution of the sketches of
its factors (TensorSketch: Pham and Pagh, 2013), and the matrix is never formed. Inner products of
sketches estimate those of the matrices without bias.

The sketch is made of many blocks of few slots with hashes of their own: this is as precise as one
of as many slots, and the convolutions of all positions are products of small matrices.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from conescope.engine.compute.products import multiply_batch

_WIDTH = 128
"""The slots of a block are the divisor of a group's slots that is nearest to this: with fewer,
sums of features take more time, with more the products of positions do."""
POSITIONS = 128
"""About so many positions, of one sample or several, are taken together."""
_HELD = 2**21
"""About so many numbers of gradients that are sketched along one axis are held at once."""
_FEW_POSITIONS = 16
"""Up to so many positions, Fourier transforms are faster than products of matrices."""


class Axis:
    """The hashes of the indices of one axis of a matrix, for all blocks.

    Args:
        size: the number of indices.
        blocks: the number of blocks.
        width: the slots of a block.
        source: text that decides the hashes.
        like: a tensor of the dtype and device of what will be sketched.

    Attributes:
        width: the slots of a block.
        slots: the slot of each index, [blocks, size].
        signs: the sign of each index, [blocks, size].
    """

    def __init__(self, size: int, blocks: int, width: int, source: str, like: Tensor) -> None:
        seed = int.from_bytes(hashlib.sha256(source.encode()).digest()[:7])
        generator = torch.Generator().manual_seed(seed)
        options = {"generator": generator, "dtype": torch.int32, "device": "cpu"}
        slots = torch.randint(width, (blocks, size), **options)
        signs = 2 * torch.randint(2, (blocks, size), **options) - 1
        if size == 1:  # so that a vector's sketch does not depend on its one column
            slots, signs = torch.zeros_like(slots), torch.ones_like(signs)
        sorted_slots, order = slots.sort(dim=1, stable=True)
        firsts = torch.arange(width, dtype=torch.int32).expand(blocks, width).contiguous()
        starts = torch.searchsorted(sorted_slots, firsts)
        self.width = width
        self.slots, self.signs = slots.to(like.device), signs.to(like.device, torch.int8)
        self._members = order.int().to(like.device)
        self._weights = signs.gather(1, order).to(like)
        self._starts = starts.int().to(like.device)

    def fold(self, values: Tensor, blocks: slice) -> Tensor:
        """Return the sketches [blocks, width, …] of values [size, …] along their first axis."""
        members = self._members[blocks]
        count, size = members.shape
        first = size * torch.arange(count, dtype=torch.int32, device=values.device)
        folded = F.embedding_bag(
            members.flatten(),
            values.flatten(1),
            (self._starts[blocks] + first[:, None]).flatten(),
            mode="sum",
            per_sample_weights=self._weights[blocks].flatten(),
        )
        return folded.view(count, self.width, *values.shape[1:])

    def one_hot(self, indices: Tensor, blocks: slice) -> Tensor:
        """Return the sketches [blocks, width, …] of the unit vectors of indices […]."""
        slots, signs = self.slots[blocks, indices], self.signs[blocks, indices]
        out = self._weights.new_zeros(len(slots), self.width, *indices.shape)
        return out.scatter_(1, slots[:, None].long(), signs[:, None].to(out.dtype))

    def shifts(self, indices: slice, blocks: slice) -> tuple[Tensor, Tensor]:
        """Return which numbers of a tensor [blocks, width, size′] convolutions add up.

        Args:
            indices: a part of the axis, size′ indices.
            blocks: some of the blocks.

        Returns:
            For each number of the sum over i of the convolutions with the sketch of the unit vector
            of index i, places and weights of what adds up to it, [blocks · width, size′].
        """
        slots, signs = self.slots[blocks, indices], self.signs[blocks, indices]
        (count, size), device = slots.shape, slots.device
        targets = torch.arange(self.width, dtype=torch.int32, device=device)[:, None]
        firsts = torch.arange(count, dtype=torch.int32, device=device)[:, None, None]
        sources = (targets - slots[:, None]).remainder_(self.width).add_(self.width * firsts)
        places = sources.mul_(size).add_(torch.arange(size, dtype=torch.int32, device=device))
        weights = signs[:, None].expand(-1, self.width, -1).to(self._weights.dtype)
        return places.flatten(0, 1), weights.reshape(-1, size)


class Sketch:
    """A projection of the gradients of many parameters to `dim` numbers a sample.

    The hashes depend on the seed, the name of the parameter, and the place of a number in it.

    Args:
        dim: the slots of all groups.
        groups: R, the number of equal groups.
        seed: decides the hashes.
        like: a tensor of the dtype and device of what will be sketched.
        named: from a parameter's name to the one that decides its hashes.
    """

    def __init__(
        self,
        dim: int,
        groups: int,
        seed: int,
        like: Tensor,
        named: Callable[[str], str] = lambda name: name,
    ) -> None:
        group = dim // groups
        small = [d for d in range(1, math.isqrt(group) + 1) if group % d == 0]
        self.width = min(
            sorted({*small, *(group // d for d in small)}),
            key=lambda d: max(d / _WIDTH, _WIDTH / d),
        )
        self.blocks, self.groups, self.seed, self.like = dim // self.width, groups, seed, like
        self._named = named
        self._axes: dict[str, tuple[Axis, Axis]] = {}

    def part(self, group: int | None) -> slice:
        """Return the blocks of one group, or of all groups for None."""
        if group is None:
            return slice(0, self.blocks)
        each = self.blocks // self.groups
        return slice(group * each, (group + 1) * each)

    def axes(self, name: str, rows: int, columns: int) -> tuple[Axis, Axis]:
        """Return the hashes of the rows and of the columns of a parameter."""
        if name not in self._axes:
            made = [
                Axis(
                    size,
                    self.blocks,
                    self.width,
                    f"{self.seed} {axis} {self._named(name)}",
                    self.like,
                )
                for axis, size in (("rows", rows), ("columns", columns))
            ]
            self._axes[name] = made[0], made[1]
        return self._axes[name]

    def add_outer(
        self, out: Tensor, left: tuple[Axis, Tensor], right: tuple[Axis, Tensor], blocks: slice
    ) -> None:
        """Add the sketches of the matrices Σ_t left[t] ⊗ right[t] of some samples.

        Args:
            out: sketches [b, dim], unscaled.
            left: an axis, and vectors along it [size, b, T], or indices [b, T] of unit vectors.
            right: the same for the other axis.
            blocks: the blocks that are added to.
        """
        samples, positions = left[1].shape[-2:]
        step = max(1, POSITIONS // positions)
        for start in range(0, samples, step):
            some = slice(start, start + step)
            place = out[some, blocks.start * self.width : blocks.stop * self.width]
            for begin in range(0, positions, POSITIONS):
                few = slice(begin, begin + POSITIONS)
                a, b = (
                    _folded(axis, values[..., some, few], blocks) for axis, values in (left, right)
                )
                place += _convolved(a, b).flatten(0, 1).T

    def add_rows(self, out: Tensor, name: str, rows: Tensor, blocks: slice) -> None:
        """Add the sketches of the gradients of a parameter that are formed, [b, rows, columns]."""
        _, height, width = rows.shape
        place = out[:, blocks.start * self.width : blocks.stop * self.width]
        short, long = self.axes(name, height, width)
        values = rows.permute(2, 1, 0)
        if height > width:
            short, long, values = long, short, values.transpose(0, 1)
        each = max(place.shape[1], len(values))
        some = max(1, _HELD // each)
        for start in range(0, values.shape[1], some):
            indices = slice(start, min(start + some, values.shape[1]))
            places, weights = short.shifts(indices, blocks)
            step = max(1, _HELD // (each * (indices.stop - start)))
            for begin in range(0, len(rows), step):
                samples = slice(begin, begin + step)
                part = values[:, indices, samples].to(self.like.dtype).contiguous()
                folded = long.fold(part, blocks).flatten(0, 2)
                place[samples] += F.embedding_bag(
                    places, folded, mode="sum", per_sample_weights=weights
                ).T


def _folded(axis: Axis, values: Tensor, blocks: slice) -> Tensor:
    """Return sketches [blocks, width, b, T] of vectors [size, b, T], or of indices [b, T]."""
    if values.dim() == 2:
        return axis.one_hot(values, blocks)
    return axis.fold(values.contiguous(), blocks)


def _convolved(a: Tensor, b: Tensor) -> Tensor:
    """Return the circular convolutions of sketches [blocks, width, b, T], summed over T.

    Returns:
        [blocks, width, b].
    """
    blocks, width, samples, positions = a.shape
    if positions <= _FEW_POSITIONS:
        spectrum = (torch.fft.rfft(a, dim=1) * torch.fft.rfft(b, dim=1)).sum(dim=-1)
        return torch.fft.irfft(spectrum, n=width, dim=1)
    out = a.new_empty(blocks, width, samples)
    # every row twice, so that a shift of one a row runs along the antidiagonals
    twice = a.new_empty(blocks, width, 2, width)
    shifted = twice.as_strided((blocks, width, width), (2 * width**2, 2 * width - 1, 1), width)
    for i in range(samples):
        multiply_batch(twice[:, :, 0], a[:, :, i].contiguous(), b[:, :, i].contiguous().mT)
        twice[:, :, 1] = twice[:, :, 0]
        torch.sum(shifted, dim=1, out=out[:, :, i])
    return out
