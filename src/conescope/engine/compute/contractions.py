"""Contract factors into a kernel: by per-sample gradients, or over pairs of positions."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from conescope.engine.compute.factors import FEATURE_ELEMENTS, Factors
from conescope.engine.compute.products import (
    LONG_SUM,
    Scratch,
    add_products,
    multiply,
    multiply_batch,
    multiply_long,
    tiles,
)
from conescope.engine.compute.shape import DIRECT_POSITIONS, Pairing

_TILE_ELEMENTS = 2**21
_TRIANGLE_TILES = 4
KNOWN_ELEMENTS = 2**24
"""Up to so many elements, the features of all samples are written once and kept."""
CHUNK_ELEMENTS = 2**22
CHUNK_OUTPUTS = 8
"""Gradients are multiplied when so many elements, or those of so many outputs, are formed: few
enough to stay in the processor's caches, and enough for fast products."""


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
