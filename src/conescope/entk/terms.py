"""A term: the summand of the kernel that belongs to one weight, with or without its bias.

A term collects the factors of many samples (`absorb`, one cotangent at a time), and adds its
products with another term of the same parameters into the kernel (`add_to`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from conescope.entk.calls import EmbeddingCall, OuterCall
from conescope.entk.products import Scratch, add_gram


class RowsTerm:
    """Parameters whose per-sample gradients are formed at once: rows [n, q, p].

    Args:
        sizes: parameter name → number of elements, side by side in a row.
        samples: n.
        directions: q, the number of cotangents.
        like: a tensor of the dtype and device.
    """

    def __init__(self, sizes: dict[str, int], samples: int, directions: int, like: Tensor) -> None:
        self.columns: dict[str, slice] = {}
        width = 0
        for name, size in sizes.items():
            self.columns[name] = slice(width, width + size)
            width += size
        self.rows = like.new_zeros(samples, directions, width)

    def absorb(self, name: str, block: slice, direction: int, rows: Tensor) -> None:
        """Add gradients [b, p] of one cotangent of a block of samples."""
        self.rows[block, direction, self.columns[name]] += rows

    def add_to(self, out: Tensor, other: RowsTerm | None, full: bool, scratch: Scratch) -> None:
        """Out += rows rowsᵀ."""
        del scratch
        left = self._matrix(full)
        add_gram(out, left, None if other is None else other._matrix(full))

    def _matrix(self, full: bool) -> Tensor:
        n, q, p = self.rows.shape
        return self.rows.view(n * q, p) if full else self.rows.view(n, q * p)


class OuterTerm:
    """A weight whose gradient is Σ_t cotangent[t] ⊗ feature[t]; the factors are kept.

    Args:
        calls: the calls of one forward pass that use the weight, alike in shape (g, o, a).
        bias: whether the calls' bias belongs to the term, as one more feature that is 1.
        samples: n.
        directions: q.
        like: a tensor of the dtype and device.
    """

    def __init__(
        self, calls: Sequence[OuterCall], bias: bool, samples: int, directions: int, like: Tensor
    ) -> None:
        self.groups, self.outputs, self.inputs = calls[0].shape
        self.bias = bias
        self.sparse = calls[0].sparse
        self.spans = _spans([call.positions for call in calls])
        self.positions = self.spans[-1].stop
        self.samples = samples
        self.blocks: list[tuple[slice, Sequence[OuterCall]]] = []
        self.cotangents = like.new_zeros(
            samples, directions, self.groups, self.outputs, self.positions
        )

    @property
    def width(self) -> int:
        """Features of a group, the bias's included."""
        return self.inputs + self.bias

    def begin(self, block: slice, calls: Sequence[OuterCall]) -> None:
        """Keep the features of a block of samples."""
        self.blocks.append((block, calls))

    def absorb(self, use: int, block: slice, direction: int, cotangent: Tensor) -> None:
        """Keep the cotangents [b, g, o, T] of one call, of one direction."""
        self.cotangents[block, direction, :, :, self.spans[use]] = cotangent

    def features(self, start: int, stop: int, scratch: Scratch, use: str) -> Tensor:
        """[stop − start, g, a, T], with the bias's ones."""
        shape = (stop - start, self.groups, self.width, self.positions)
        out = scratch.take(use, shape, self.cotangents)
        if self.bias:
            out[:, :, -1] = 1.0
        for block, calls in self.blocks:
            first, last = max(start, block.start), min(stop, block.stop)
            if first >= last:
                continue
            part = out[first - start : last - start, :, : self.inputs]
            for span, call in zip(self.spans, calls, strict=True):
                part[..., span] = call.features(first - block.start, last - block.start)
        return out

    def tokens(self) -> Tensor:
        """[n, T], for an embedding."""
        rows = []
        for _, calls in self.blocks:
            parts = [call.tokens() for call in calls if isinstance(call, EmbeddingCall)]
            rows.append(torch.cat(parts, dim=1))
        return torch.cat(rows)

    def add_to(self, out: Tensor, other: OuterTerm | None, full: bool, scratch: Scratch) -> None:
        """Out += this term's products, by the cheaper contraction."""
        by_positions = position_cost(self, other, full) < jacobian_cost(self, other, full)
        if self.sparse or by_positions:
            add_position_products(out, self, other, full, scratch)
        else:
            add_jacobian_products(out, self, other, full, scratch)


def _spans(lengths: Sequence[int]) -> list[slice]:
    spans, start = [], 0
    for length in lengths:
        spans.append(slice(start, start + length))
        start += length
    return spans


def jacobian_cost(left: OuterTerm, right: OuterTerm | None, full: bool) -> float:
    """Operations of `add_jacobian_products`."""
    n, q = left.cotangents.shape[:2]
    size = left.groups * left.outputs * left.width
    m = n if right is None else right.samples
    share = 0.5 if right is None else 1.0
    forming = 2.0 * (n if right is None else n + m) * q * left.positions * size
    return forming + 2.0 * share * n * m * size * (q * q if full else q)


def position_cost(left: OuterTerm, right: OuterTerm | None, full: bool) -> float:
    """Operations of `add_position_products`."""
    n, q = left.cotangents.shape[:2]
    m = n if right is None else right.samples
    share = 0.5 if right is None else 1.0
    t, s = left.positions, (left if right is None else right).positions
    o = left.groups * left.outputs
    pair = 2.0 * t * s * left.groups * left.width
    if full and q > 1:
        pair += 2.0 * t * s * q * o + 2.0 * q * q * t * o
    else:
        pair += 2.0 * t * s * q * o
    return share * n * m * pair


def add_jacobian_products(
    out: Tensor, left: OuterTerm, right: OuterTerm | None, full: bool, scratch: Scratch
) -> None:
    """Form the per-sample gradients, for a slice of the outputs at a time, and multiply them."""
    per_output = left.groups * left.width * left.cotangents.shape[1]
    rows = max(left.samples, 0 if right is None else right.samples)
    chunk = max(1, min(left.outputs, _CHUNK // (per_output * rows)))
    for start in range(0, left.outputs, chunk):
        outputs = slice(start, min(left.outputs, start + chunk))
        j = _jacobian(left, outputs, full, scratch, "left")
        k = None if right is None else _jacobian(right, outputs, full, scratch, "right")
        add_gram(out, j, k)


_CHUNK = 2**26
_UNFOLDED = 2**23


def _jacobian(term: OuterTerm, outputs: slice, full: bool, scratch: Scratch, use: str) -> Tensor:
    """Per-sample gradients of some outputs' weights, [n·q, p] or [n, q·p]."""
    n, q, g, _, t = term.cotangents.shape
    o = outputs.stop - outputs.start
    rows = scratch.take(use, (n, q, g, o, term.width), term.cotangents)
    step = max(1, _UNFOLDED // (g * term.width * t))
    for start in range(0, n, step):
        stop = min(n, start + step)
        features = term.features(start, stop, scratch, "features")
        cotangents = term.cotangents[start:stop, :, :, outputs]
        if g == 1:
            left = cotangents.reshape(stop - start, q * o, t)
            place = rows[start:stop].view(stop - start, q * o, term.width)
            torch.bmm(left, features[:, 0].mT, out=place)
        else:
            rows[start:stop] = torch.einsum("zqgot,zgat->zqgoa", cotangents, features)
    return rows.view(n * q, -1) if full else rows.view(n, -1)


def add_position_products(
    out: Tensor, left: OuterTerm, right: OuterTerm | None, full: bool, scratch: Scratch
) -> None:
    """Contract over pairs of positions: (A_i[t] · A_j[t′]) (G_i[t] · G_j[t′])."""
    q = left.cotangents.shape[1]
    other = left if right is None else right
    keep = full and q > 1
    elements = max(left.positions * other.positions, left.positions * left.width * left.groups)
    step = max(1, math.isqrt(_PAIRS // elements))
    for rows, columns in _tiles(left.samples, other.samples, step, right is None):
        for group in range(left.groups):
            grams = _feature_gram(left, rows, other, columns, group, scratch)
            if keep:
                _add_full(out, left, rows, other, columns, group, grams)
            else:
                _add_summed(out, left, rows, other, columns, group, grams)


_PAIRS = 2**22


def _tiles(n: int, m: int, step: int, symmetric: bool):
    for start in range(0, n, step):
        rows = slice(start, min(n, start + step))
        for begin in range(0, rows.stop if symmetric else m, step):
            yield rows, slice(begin, min(m, begin + step))


def _feature_gram(
    left: OuterTerm, rows: slice, right: OuterTerm, columns: slice, group: int, scratch: Scratch
) -> Tensor:
    """A_i[t] · A_j[t′], [I, T, J, T′]."""
    shape = (rows.stop - rows.start, left.positions, columns.stop - columns.start, right.positions)
    if left.sparse:
        equal = left.tokens()[rows, :, None, None] == right.tokens()[columns]
        return equal.to(left.cotangents.dtype)
    a = left.features(rows.start, rows.stop, scratch, "left features")[:, group]
    b = right.features(columns.start, columns.stop, scratch, "right features")[:, group]
    a, b = a.mT.reshape(-1, left.width), b.mT.reshape(-1, left.width)
    return (a @ b.T).view(shape)


def _add_summed(
    out: Tensor,
    left: OuterTerm,
    rows: slice,
    right: OuterTerm,
    columns: slice,
    group: int,
    grams: Tensor,
) -> None:
    q = left.cotangents.shape[1]
    g, h = (
        term.cotangents[part, :, group].permute(0, 3, 1, 2).reshape(-1, q * left.outputs)
        for term, part in ((left, rows), (right, columns))
    )
    products = (g @ h.T).view(grams.shape).mul_(grams)
    out[rows, columns] += products.sum(dim=(1, 3))


def _add_full(
    out: Tensor,
    left: OuterTerm,
    rows: slice,
    right: OuterTerm,
    columns: slice,
    group: int,
    grams: Tensor,
) -> None:
    q = left.cotangents.shape[1]
    g = left.cotangents[rows, :, group]
    count = len(g)
    place = out.view(-1, q, out.shape[1] // q, q)[rows, :, columns]
    for j in range(columns.stop - columns.start):
        h = right.cotangents[columns.start + j, :, group].reshape(-1, right.positions)
        weighted = torch.matmul(h, grams[:, :, j].mT).view(count, q, -1)
        place[:, :, j] += torch.bmm(g.reshape(count, q, -1), weighted.mT)
