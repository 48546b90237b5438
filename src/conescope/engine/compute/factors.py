"""Weights whose per-sample gradient is a sum of outer products over positions, Σ_t G[t] ⊗ A[t].

G are the cotangents of an operation's output, A are its features, that is, its input. Linear
layers, convolutions and embeddings have such weights. Their factors are contracted into a kernel by
per-sample gradients, or over pairs of positions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from conescope.engine.compute.products import (
    LONG_SUM,
    Memory,
    Scratch,
    add_products,
    multiply,
    multiply_batch,
    multiply_long,
    tiles,
)
from conescope.engine.compute.shape import DIRECT_POSITIONS, Pairing, Shape, Use

FEATURE_ELEMENTS = 2**21
"""About so many elements of features are written out at once."""
FEW_COTANGENTS = 3
"""Products serve more cotangents better than convolutions do: features are written only once."""

Places = Sequence[tuple[slice, Tensor]]
"""Some of the cotangents, and the tensor that takes their gradients; several together take all."""
_TILE_ELEMENTS = 2**21
_TRIANGLE_TILES = 4
KNOWN_ELEMENTS = 2**24
"""Up to so many elements, the features of all samples are written once and kept."""
CHUNK_ELEMENTS = 2**22
CHUNK_OUTPUTS = 8
"""Gradients are multiplied when so many elements, or those of so many outputs, are formed: few
enough to stay in the processor's caches, and enough for fast products."""


class Factors:
    """The cotangents and features of a weight, for n samples and q cotangents.

    Args:
        shape: the sizes of the weight.
        samples: n.
        cotangents: q.
        allocate: makes the tensor of cotangents, [n, q, g, o, T], from its shape.
    """

    def __init__(
        self,
        shape: Shape,
        samples: int,
        cotangents: int,
        allocate: Callable[[tuple[int, ...]], Tensor],
    ) -> None:
        self.shape = shape
        self.features = Features(shape)
        self.samples = samples
        self.cotangents = allocate(
            (samples, cotangents, shape.groups, shape.outputs, shape.positions)
        )

    @property
    def device(self) -> torch.device:
        """The device of the factors."""
        return self.cotangents.device

    def write_gradients(
        self, outputs: slice, places: Places, scratch: Scratch, known: Tensor | None = None
    ) -> None:
        """Write the per-sample gradients of some outputs' weights.

        Args:
            outputs: which outputs, o′ of them.
            places: where the gradients of some cotangents go, [n, q′, g, o′, a].
            scratch: buffers.
            known: the features of all samples, where they have been written before.
        """
        if self.by_convolution:
            for cotangents, rows in places:
                self._convolve(outputs, cotangents, rows)
            return
        n, _, g, _, t = self.cotangents.shape
        a = self.features.width
        step = n if known is not None else max(1, FEATURE_ELEMENTS // (g * a * t))
        for start in range(0, n, step):
            part = slice(start, min(n, start + step))
            features = known
            if features is None:
                features = self.features.write(part, self.cotangents, scratch, "features")
            for numbers, rows in places:
                _, q, _, o, _ = rows.shape
                cotangents = self.cotangents[part, numbers, :, outputs]
                if g == 1:
                    left = cotangents.reshape(-1, q * o, t)
                    multiply_batch(rows[part].view(-1, q * o, a), left, features[:, 0])
                else:
                    rows[part] = cotangents @ features[:, None]

    @property
    def by_convolution(self) -> bool:
        """Whether convolutions form the gradients, one cotangent at a time, without features."""
        return self.cotangents.shape[1] <= min(self.shape.convolved, FEW_COTANGENTS)

    def _convolve(self, outputs: slice, numbers: slice, rows: Tensor) -> None:
        inputs = self.features.inputs
        cotangents = self.cotangents[:, numbers, :, outputs]
        if rows.shape[-1] > inputs:
            rows[..., inputs] = cotangents.sum(dim=-1)
        for block, uses in self.features.blocks:
            for k in range(rows.shape[1]):
                for number, use in enumerate(uses):
                    cotangent = cotangents[block, k, ..., self.features.spans[number]]
                    place = rows[block, k, ..., :inputs]
                    add = place.add_ if number else place.copy_
                    add(use.gradients(cotangent))

    def place(self, use: int, block: slice, cotangent: int) -> Tensor:
        """Return where a cotangent at the output of one use belongs, [b, g, o, T]."""
        return self.cotangents[block, cotangent, :, :, self.features.spans[use]]


class Features:
    """The features of many samples, kept block by block and written out where they are needed.

    Args:
        shape: the sizes of the weight.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.width = 1 if shape.sparse else shape.inputs
        self.spans: list[slice] = []
        self.blocks: list[tuple[slice, Sequence[Use]]] = []

    def keep_in(self, store: Memory) -> None:
        """Move what the uses of the last block hold to where it waits for the products."""
        for use in self.blocks[-1][1]:
            use.source = store.keep(use.source)

    def append(self, block: slice, uses: Sequence[Use]) -> None:
        """Take in the uses of the weight for a block of samples."""
        self.blocks.append((block, uses))
        ends = list(itertools.accumulate(use.shape.positions for use in uses))
        self.spans = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    @property
    def elements(self) -> int:
        """Numbers that a sample's features take when they are written out."""
        return self.shape.features

    @property
    def inputs(self) -> int:
        """The number of features without that of the bias."""
        return self.width if self.shape.sparse else self.blocks[0][1][0].shape.inputs

    def write(self, samples: slice, like: Tensor, scratch: Scratch, use: str) -> Tensor:
        """Return features [b, g, T, a], valid until the scratch is taken for the same use."""
        start, stop = samples.start, samples.stop
        if self.shape.sparse:
            use, like = f"{use}, tokens", like.new_empty(0, dtype=torch.int64)
        shape = (stop - start, self.shape.groups, self.shape.positions, self.width)
        out = scratch.take(use, shape, like)
        inputs = self.inputs
        out[..., inputs:] = 1.0  # the bias's feature
        for block, uses in self.blocks:
            first, last = max(start, block.start), min(stop, block.stop)
            if first < last:
                for span, operation in zip(self.spans, uses, strict=True):
                    part = out[first - start : last - start, :, span, :inputs]
                    operation.write_features(part, first - block.start, last - block.start)
        return out


def add_gradient_products(
    out: Tensor, left: Factors, right: Factors | None, pairing: Pairing, scratch: Scratch
) -> None:
    """Form the per-sample gradients, for a slice of the outputs at a time, and multiply them."""
    _, q, g, o, _ = left.cotangents.shape
    terms = {"left": left} if right is None else {"left": left, "right": right}
    samples = max(term.samples for term in terms.values())
    width = left.features.width
    each = len(terms) * q * samples * g * width
    known = {} if left.by_convolution else _written_once(terms, scratch)
    room = scratch.limit - sum(features.numel() for features in known.values())
    most = max(CHUNK_OUTPUTS, CHUNK_ELEMENTS // each)
    chunk = max(1, min(o, room // each, most, LONG_SUM // (g * width)))
    for start in range(0, o, chunk):
        outputs = slice(start, min(o, start + chunk))
        parts = pairing.together(q, g * (outputs.stop - start) * width)
        formed: dict[str, list[Tensor]] = {}
        for use, term in terms.items():
            formed[use] = []
            for k, part in enumerate(parts):
                shape = (term.samples, part.stop - part.start, g, outputs.stop - start, width)
                formed[use].append(scratch.take(f"{use} {k}", shape, term.cotangents))
            places = list(zip(parts, formed[use], strict=True))
            term.write_gradients(outputs, places, scratch, known.get(use))
        others = formed.get("right", [None] * len(parts))
        for part, rows, other in zip(parts, formed["left"], others, strict=True):
            add_products(out, part, rows, other, pairing)


def _written_once(terms: Mapping[str, Factors], scratch: Scratch) -> dict[str, Tensor]:
    """Write the features of all samples, by use, if they are few enough; else return nothing."""
    elements = sum(term.samples * term.features.elements for term in terms.values())
    if elements > min(KNOWN_ELEMENTS, scratch.limit // 2):
        return {}
    return {
        use: term.features.write(
            slice(0, term.samples), term.cotangents, scratch, f"{use} features"
        )
        for use, term in terms.items()
    }


def add_position_products(
    out: Tensor, left: Factors, right: Factors | None, pairing: Pairing, scratch: Scratch
) -> None:
    """Add the sums over pairs of positions of (A_i[t] · A_j[t′]) (G_i[t] · G_j[t′])."""
    other = left if right is None else right
    q = left.cotangents.shape[1]
    t, full = left.shape.positions, pairing is Pairing.FULL
    direct = full and t <= DIRECT_POSITIONS
    side = math.isqrt(min(_TILE_ELEMENTS, scratch.limit)) // (t * q if direct else t)
    wide = max(q * left.shape.outputs, left.features.width)
    held = min(2 * FEATURE_ELEMENTS, scratch.limit) // (t * wide * left.shape.groups)
    step = max(1, min(side, held, -(-left.samples // _TRIANGLE_TILES)))
    terms = {"left": left} if right is None else {"left": left, "right": right}
    known = _written_once(terms, scratch)
    if right is None and known:
        known["right"] = known["left"]
    add = _add_direct if direct else _add_weighted
    for rows, columns in tiles(left.samples, other.samples, step, right is None):
        a = _features("left", left, rows, known, scratch)
        b = _features("right", other, columns, known, scratch)
        grams = _feature_grams(a, b, scratch)
        for group in range(left.shape.groups):
            g, h = left.cotangents[rows, :, group], other.cotangents[columns, :, group]
            if full:
                place = out[0].view(-1, q, out.shape[2] // q, q)[rows, :, columns]
                add(place, g, h, grams[group])
                continue
            for part in [slice(0, q)] if pairing is Pairing.SUMMED else pairing.together(q, 1):
                place = out[part.start, rows, columns]
                _add_summed(place, g[:, part], h[:, part], grams[group])


def _features(
    use: str, term: Factors, part: slice, known: Mapping[str, Tensor], scratch: Scratch
) -> Tensor:
    """Return the features of some samples, [I, g, T, a]."""
    if use in known:
        return known[use][part]
    return term.features.write(part, term.cotangents, scratch, f"{use} features")


def _feature_grams(a: Tensor, b: Tensor, scratch: Scratch) -> Tensor:
    """Return A_i[t] · A_j[t′], [g, I, T, J, T′]."""
    left, right = (features.transpose(0, 1).flatten(1, 2) for features in (a, b))
    grams = scratch.take("grams", (len(left), left.shape[1], right.shape[1]), left)
    multiply_batch(grams, left, right.mT)
    return grams.view(len(grams), len(a), a.shape[2], len(b), b.shape[2])


def _add_summed(place: Tensor, g: Tensor, h: Tensor, grams: Tensor) -> None:
    """Add to place[i, j] Σ_tt′ grams[i, t, j, t′] Σ_k g[i, k, :, t] · h[j, k, :, t′]."""
    left, right = (factor.permute(0, 3, 1, 2).flatten(2).flatten(0, 1) for factor in (g, h))
    products = multiply_long(left, right.T)
    place += products.view(grams.shape).mul_(grams).sum(dim=(1, 3))


def _add_direct(place: Tensor, g: Tensor, h: Tensor, grams: Tensor) -> None:
    """Add to place[i, k, j, l] Σ_tt′ grams[i, t, j, t′] g[i, k, :, t] · h[j, l, :, t′]."""
    left, right = (factor.transpose(2, 3).flatten(0, 2) for factor in (g, h))
    products = multiply(left, right.T)
    (i, q, _, t), (j, _, _, s) = g.shape, h.shape
    weighted = products.view(i, q, t, j, q, s).mul_(grams[:, None, :, :, None])
    place += weighted[:, :, 0, ..., 0] if t * s == 1 else weighted.sum(dim=(2, 5))


def _add_weighted(place: Tensor, g: Tensor, h: Tensor, grams: Tensor) -> None:
    """Do as `_add_direct`, but contract the positions of h before its outputs."""
    i, q, o, t = g.shape
    left = g.reshape(i, q, o * t)
    for j, cotangents in enumerate(h):
        vectors = cotangents.reshape(q * o, -1)
        pairs = zip(left, grams[:, :, j].contiguous(), place[:, :, j], strict=True)
        for factor, gram, result in pairs:
            weighted = multiply(vectors, gram.T)
            result += multiply_long(factor, weighted.view(q, o * t).T)
