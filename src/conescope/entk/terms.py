"""A term: the summand of the kernel that belongs to one weight, or to many small parameters.

A term collects what it needs from many samples, one cotangent at a time, and then adds its
product with another term of the same parameters (or itself) into the kernel.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from conescope.entk.calls import DenseCall, EmbeddingCall, OuterCall
from conescope.entk.products import Scratch, add_gram, matrix, multiply, multiply_batch, tiles
from conescope.entk.survey import Shape

_FEATURE_ELEMENTS = 2**21
_TILE_ELEMENTS = 2**21
DIRECT_POSITIONS = 4
KNOWN_ELEMENTS = 2**24
"""Features of all samples that are written once, rather than once a slice of outputs."""
CHUNK_ELEMENTS = 2**22
CHUNK_OUTPUTS = 8
"""Gradients that are formed before they are multiplied, the larger of the two: few enough to be
near the processor still, enough for its products to run at full speed."""


class Term(Protocol):
    """What every kind of term can do.

    Attributes:
        samples: n.
    """

    samples: int

    def add_to(self, out: Tensor, other: Any, full: bool, scratch: Scratch) -> None:
        """Add the products with another term of the same parameters, or with itself.

        Args:
            out: [n·q, m·q] if `full`, else [n, m].
            other: the other term, of the same kind; None for itself, which touches the lower
                triangle only.
            full: whether the q cotangents stay apart, or are summed over.
            scratch: buffers.
        """
        ...


class RowsTerm:
    """Parameters whose per-sample gradients are formed at once: rows [n, q, p].

    Args:
        sizes: parameter name → number of elements, side by side in a row.
        samples: n.
        directions: q, the number of cotangents.
        like: a tensor of the dtype and device.
    """

    def __init__(
        self, sizes: Mapping[str, int], samples: int, directions: int, like: Tensor
    ) -> None:
        self.samples = samples
        self.columns: dict[str, slice] = {}
        width = 0
        for name, size in sizes.items():
            self.columns[name] = slice(width, width + size)
            width += size
        self.rows = like.new_empty(samples, directions, width)

    def place(self, name: str, block: slice, direction: int) -> Tensor:
        """Where the gradients of one parameter belong, [b, p]."""
        return self.rows[block, direction, self.columns[name]]

    def add_to(self, out: Tensor, other: RowsTerm | None, full: bool, scratch: Scratch) -> None:
        """Out += rows rowsᵀ."""
        del scratch
        add_gram(out, matrix(self.rows, full), None if other is None else matrix(other.rows, full))


class FormedTerm:
    """An outer weight whose per-sample gradients take less memory than their factors.

    Args:
        shape: of the weight.
        samples: n.
        directions: q.
        like: a tensor of the dtype and device.
    """

    def __init__(self, shape: Shape, samples: int, directions: int, like: Tensor) -> None:
        self.samples = samples
        g, o, a = shape.groups, shape.outputs, shape.inputs
        self.rows = like.new_empty(samples, directions, g, o, a)

    def form(self, block: slice, term: OuterTerm, scratch: Scratch) -> None:
        """Take in the gradients of a block of samples from their factors."""
        term.jacobian(slice(0, self.rows.shape[3]), self.rows[block], scratch)

    def add_to(self, out: Tensor, other: FormedTerm | None, full: bool, scratch: Scratch) -> None:
        """Out += rows rowsᵀ."""
        del scratch
        add_gram(out, matrix(self.rows, full), None if other is None else matrix(other.rows, full))


class OuterTerm:
    """A weight whose gradient is Σ_t cotangent[t] ⊗ feature[t]; the factors are kept.

    Args:
        shape: of the weight.
        samples: n.
        directions: q.
        allocate: makes the tensor of cotangents, [n, q, g, o, T], from its shape.
    """

    def __init__(
        self,
        shape: Shape,
        samples: int,
        directions: int,
        allocate: Callable[[tuple[int, ...]], Tensor],
    ) -> None:
        self.shape = shape
        self.features = Features(shape)
        self.sparse = shape.sparse
        self.samples = samples
        self.cotangents = allocate(
            (samples, directions, shape.groups, shape.outputs, shape.positions)
        )

    @property
    def positions(self) -> int:
        """T, over all calls."""
        return self.features.positions

    def jacobian(
        self, outputs: slice, rows: Tensor, scratch: Scratch, known: Tensor | None = None
    ) -> None:
        """Write the per-sample gradients of some outputs' weights to `rows`, [n, q, g, o′, a].

        Args:
            outputs: which outputs.
            rows: where the gradients go.
            scratch: buffers.
            known: the features of all samples, where they have been written before.
        """
        n, q, g, _, t = self.cotangents.shape
        o, a = rows.shape[3:]
        step = n if known is not None else max(1, _FEATURE_ELEMENTS // (g * a * t))
        for start in range(0, n, step):
            part = slice(start, min(n, start + step))
            features = known
            if features is None:
                features = self.features.write(part.start, part.stop, rows, scratch, "features")
            cotangents = self.cotangents[part, :, :, outputs]
            if g == 1:
                left = cotangents.reshape(-1, q * o, t)
                multiply_batch(rows[part].view(-1, q * o, a), left, features[:, 0])
            else:
                rows[part] = cotangents @ features[:, None]

    def place(self, use: int, block: slice, direction: int) -> Tensor:
        """Where the cotangents of one call belong, [b, g, o, T]."""
        return self.cotangents[block, direction, :, :, self.features.spans[use]]

    def add_to(self, out: Tensor, other: OuterTerm | None, full: bool, scratch: Scratch) -> None:
        """Out += this term's products, by the cheaper contraction."""
        full = full and self.cotangents.shape[1] > 1
        m = None if other is None else other.samples
        work = self.shape, self.samples, m, self.cotangents.shape[1], full
        if self.sparse or position_cost(*work) < jacobian_cost(*work):
            _add_position_products(out, self, other, full, scratch)
        else:
            _add_jacobian_products(out, self, other, full, scratch)


class Features:
    """Features of many samples, block by block, written out where they are needed.

    Args:
        shape: of the weight.
    """

    def __init__(self, shape: Shape) -> None:
        self.groups, self.outputs, self.width = shape.groups, shape.outputs, shape.inputs
        self.positions = shape.positions
        self.spans: list[slice] = []
        self.blocks: list[tuple[slice, Sequence[OuterCall]]] = []

    def append(self, block: slice, calls: Sequence[OuterCall]) -> None:
        """Take in a block of samples."""
        self.blocks.append((block, calls))
        ends = list(itertools.accumulate(call.positions for call in calls))
        self.spans = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    def write(self, start: int, stop: int, like: Tensor, scratch: Scratch, use: str) -> Tensor:
        """[stop − start, g, T, a], valid until the scratch is used for the same again."""
        shape = (stop - start, self.groups, self.positions, self.width)
        out = scratch.take(use, shape, like)
        inputs = self.blocks[0][1][0].shape[2]
        out[..., inputs:] = 1.0  # the bias's feature
        for block, calls in self.blocks:
            first, last = max(start, block.start), min(stop, block.stop)
            if first < last:
                for span, call in zip(self.spans, calls, strict=True):
                    assert isinstance(call, DenseCall)
                    part = out[first - start : last - start, :, span, :inputs]
                    call.write_features(part, first - block.start, last - block.start)
        return out

    def tokens(self) -> Tensor:
        """[n, T], for an embedding."""
        rows = [
            torch.cat([call.tokens() for call in calls if isinstance(call, EmbeddingCall)], dim=1)
            for _, calls in self.blocks
        ]
        return torch.cat(rows)


def jacobian_cost(shape: Shape, n: int, m: int | None, q: int, full: bool) -> float:
    """Operations of the contraction that forms per-sample gradients; m None for x with itself."""
    formed = 2.0 * (n + (m or 0)) * q * shape.positions * shape.size
    pairs = n * n / 2 if m is None else n * m
    return formed + 2.0 * pairs * shape.size * (q * q if full else q)


def position_cost(shape: Shape, n: int, m: int | None, q: int, full: bool) -> float:
    """Operations of the contraction over pairs of positions; m None for x with itself."""
    t, o = shape.positions, shape.groups * shape.outputs
    pair = 2.0 * t * t * (shape.groups * shape.inputs + q * o)
    if full:
        pair += 2.0 * q * q * t * o
    return pair * (n * n / 2 if m is None else n * m)


def _add_jacobian_products(
    out: Tensor, left: OuterTerm, right: OuterTerm | None, full: bool, scratch: Scratch
) -> None:
    """Form the per-sample gradients, for a slice of the outputs at a time, and multiply them."""
    _, q, g, o, t = left.cotangents.shape
    terms = {"left": left} if right is None else {"left": left, "right": right}
    samples = max(term.samples for term in terms.values())
    width = left.features.width
    each = len(terms) * q * samples * g * width
    features = len(terms) * samples * g * t * width
    room, known = scratch.limit, {}
    if features <= min(KNOWN_ELEMENTS, room // 2):
        room -= features
        known = {
            use: term.features.write(0, term.samples, term.cotangents, scratch, f"{use} features")
            for use, term in terms.items()
        }
    chunk = max(1, min(o, room // each, max(CHUNK_OUTPUTS, CHUNK_ELEMENTS // each)))
    for start in range(0, o, chunk):
        outputs = slice(start, min(o, start + chunk))
        jacobians = []
        for use, term in terms.items():
            shape = (term.samples, q, g, outputs.stop - start, width)
            rows = scratch.take(use, shape, term.cotangents)
            term.jacobian(outputs, rows, scratch, known.get(use))
            jacobians.append(matrix(rows, full))
        add_gram(out, jacobians[0], None if right is None else jacobians[1])


def _add_position_products(
    out: Tensor, left: OuterTerm, right: OuterTerm | None, full: bool, scratch: Scratch
) -> None:
    """Contract over pairs of positions: (A_i[t] · A_j[t′]) (G_i[t] · G_j[t′])."""
    other = left if right is None else right
    q = left.cotangents.shape[1]
    t = max(left.positions, other.positions)
    direct = full and t <= DIRECT_POSITIONS
    side = math.isqrt(min(_TILE_ELEMENTS, scratch.limit)) // (t * q if direct else t)
    wide = max(q * left.features.outputs, 0 if left.sparse else left.features.width)
    held = min(2 * _FEATURE_ELEMENTS, scratch.limit) // (t * wide * left.features.groups)
    step = max(1, min(side, held))
    add = _add_direct if direct else _add_weighted if full else _add_summed
    for rows, columns in tiles(left.samples, other.samples, step, right is None):
        grams = _feature_grams(left, rows, other, columns, scratch)
        for group in range(left.features.groups):
            g, h = left.cotangents[rows, :, group], other.cotangents[columns, :, group]
            if full:
                place = out.view(-1, q, out.shape[1] // q, q)[rows, :, columns]
            else:
                place = out[rows, columns]
            add(place, g, h, grams[group], scratch)


def _feature_grams(
    left: OuterTerm, rows: slice, right: OuterTerm, columns: slice, scratch: Scratch
) -> Tensor:
    """A_i[t] · A_j[t′], [g, I, T, J, T′]."""
    if left.sparse:
        equal = (
            left.features.tokens()[rows, :, None, None] == right.features.tokens()[columns][None]
        )
        return equal[None].to(left.cotangents.dtype)
    factors = []
    for term, part, use in ((left, rows, "left features"), (right, columns, "right features")):
        features = term.features.write(part.start, part.stop, term.cotangents, scratch, use)
        factors.append(features.transpose(0, 1).flatten(1, 2))
    a, b = factors
    grams = scratch.take("grams", (len(a), a.shape[1], b.shape[1]), a)
    multiply_batch(grams, a, b.mT)
    return grams.view(
        len(grams), rows.stop - rows.start, left.positions, columns.stop - columns.start, -1
    )


def _add_summed(place: Tensor, g: Tensor, h: Tensor, grams: Tensor, scratch: Scratch) -> None:
    """place[i, j] += Σ_tt′ grams[i, t, j, t′] Σ_k g[i, k, :, t] · h[j, k, :, t′]."""
    left, right = (factor.permute(0, 3, 1, 2).flatten(2).flatten(0, 1) for factor in (g, h))
    products = multiply(left, right.T)
    place += products.view(grams.shape).mul_(grams).sum(dim=(1, 3))


def _add_direct(place: Tensor, g: Tensor, h: Tensor, grams: Tensor, scratch: Scratch) -> None:
    """place[i, k, j, l] += Σ_tt′ grams[i, t, j, t′] g[i, k, :, t] · h[j, l, :, t′]."""
    left, right = (factor.transpose(2, 3).flatten(0, 2) for factor in (g, h))
    products = multiply(left, right.T)
    (i, q, _, t), (j, _, _, s) = g.shape, h.shape
    weighted = products.view(i, q, t, j, q, s).mul_(grams[:, None, :, :, None])
    place += weighted[:, :, 0, ..., 0] if t * s == 1 else weighted.sum(dim=(2, 5))


def _add_weighted(place: Tensor, g: Tensor, h: Tensor, grams: Tensor, scratch: Scratch) -> None:
    """`_add_direct`, with the positions of h contracted before its outputs."""
    i, q, o, t = g.shape
    left = g.reshape(i, q, o * t)
    weighted = scratch.take("products", (i, q * o, t), g)
    for j, cotangents in enumerate(h):
        vectors = cotangents.reshape(1, q * o, -1).expand(i, -1, -1)
        torch.bmm(vectors, grams[:, :, j].mT, out=weighted)
        place[:, :, j] += torch.bmm(left, weighted.view(i, q, o * t).mT)
