"""Embeddings, and weights that an embedding shares with a linear map.

The gradient of an embedding has rows only at the tokens of a sample, so its products are sums over
equal tokens; whole gradients, vocabulary × width, are never formed. A weight tied to a linear map
has the products of both uses, and those between them, which are sums over pairs of positions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from conescope.engine.compute.factors import Factors
from conescope.engine.compute.products import Scratch, tiles
from conescope.engine.compute.shape import Pairing

_GATHERED = 2**22
_TILE = 2**21
_CROSSED = {
    Pairing.SUMMED: "ikjst,jkits->ij",
    Pairing.FULL: "ikjst,jlits->ikjl",
    Pairing.APART: "ikjst,jkits->kij",
}


def add_token_products(
    out: Tensor, left: Factors, right: Factors | None, pairing: Pairing, scratch: Scratch
) -> None:
    """Add the products of the gradients of embeddings: sums over tokens that two samples share.

    Args:
        out: as for `add_products`.
        left: the factors of n samples, whose features are tokens.
        right: those of m samples; None for `left` itself, which fills all of `out`.
        pairing: which cotangents are multiplied.
        scratch: buffers.
    """
    terms = [left] if right is None else [left, right]
    tokens = torch.cat([_tokens(term, scratch) for term in terms])
    total, positions = tokens.shape
    samples = torch.arange(total, device=tokens.device)[:, None].expand_as(tokens)
    keys, places = torch.unique(tokens * total + samples, return_inverse=True)
    holder, token = keys % total, keys // total
    q, width = left.cotangents.shape[1], left.shape.outputs
    dtype = torch.promote_types(left.cotangents.dtype, torch.float32)
    for part in [slice(0, q)] if pairing is Pairing.FULL else [slice(k, k + 1) for k in range(q)]:
        count = part.stop - part.start
        sums = left.cotangents.new_zeros(len(keys), count, width, dtype=dtype)
        first = 0
        for term in terms:
            vectors = term.cotangents[:, part, 0].permute(0, 3, 1, 2).flatten(0, 1)
            chosen = places.view(total, positions)[first : first + term.samples].flatten()
            sums.index_add_(0, chosen, vectors.to(dtype))
            first += term.samples
        matrices = out[part.start if pairing is Pairing.APART else 0]
        matrices = matrices.view(matrices.shape[0] // count, count, -1, count)
        for rows, columns in _shared(token, holder, left.samples, right is None):
            step = max(1, _GATHERED // (rows.shape[1] * count * width))
            for start in range(0, len(rows), step):
                few = slice(start, start + step)
                a, b = (sums[index[few]].flatten(1, 2) for index in (rows, columns))
                products = (a @ b.mT).view(len(a), rows.shape[1], count, columns.shape[1], count)
                i, j = holder[rows[few]][:, :, None], holder[columns[few]][:, None, :]
                j = j if right is None else j - left.samples
                values = products.transpose(2, 3).to(out.dtype)
                matrices.transpose(1, 2).index_put_((i, j), values, accumulate=True)


def _tokens(term: Factors, scratch: Scratch) -> Tensor:
    written = term.features.write(slice(0, term.samples), term.cotangents, scratch, "tokens")
    return written[:, 0, :, 0].clone()


def _shared(
    token: Tensor, holder: Tensor, n: int, symmetric: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the numbers of keys that hold the same token, for tokens that as many samples hold.

    Args:
        token: the token of each key, rising.
        holder: the sample of each key, rising among equal tokens.
        n: samples of the first index, which come first.
        symmetric: whether they are those of the second index, too.

    Yields:
        For B tokens, [B, l] keys of the first index and [B, r] keys of the second one.
    """
    _, counts = torch.unique_consecutive(token, return_counts=True)
    starts = counts.cumsum(0) - counts
    if symmetric:
        kinds = torch.stack([counts, counts], dim=1)
    else:
        passed = torch.cat([holder.new_zeros(1), (holder < n).cumsum(0)])
        first = passed[starts + counts] - passed[starts]
        kinds = torch.stack([first, counts - first], dim=1)
    different, kind = torch.unique(kinds, dim=0, return_inverse=True)
    for number, (left, right) in enumerate(different.cpu().tolist()):
        if left and right:
            start = starts[kind == number][:, None]
            before = 0 if symmetric else left
            yield (
                start + torch.arange(left, device=start.device),
                start + before + torch.arange(right, device=start.device),
            )


def add_tied_products(
    out: Tensor,
    left: Sequence[Factors],
    right: Sequence[Factors] | None,
    pairing: Pairing,
    scratch: Scratch,
) -> None:
    """Add the products between the different kinds of uses of a weight.

    The weight of one kind is that of the other transposed, so the features of one are multiplied
    with the cotangents of the other: Σ_tt′ (G_i[t] · A_j[t′]) (A_i[t] · G_j[t′]).

    Args:
        out: as for `add_products`.
        left: the factors of n samples, kind by kind.
        right: those of m samples; None for `left` itself, which fills the lower triangle.
        pairing: which cotangents are multiplied.
        scratch: buffers.
    """
    for number, f in enumerate(left):
        for other, h in enumerate(left if right is None else right):
            if number != other and f.shape.transposed != h.shape.transposed:
                _add_crossed(out, f, h, pairing, right is None, scratch)


def _add_crossed(
    out: Tensor, f: Factors, h: Factors, pairing: Pairing, symmetric: bool, scratch: Scratch
) -> None:
    q = f.cotangents.shape[1]
    pair = q * f.shape.positions * h.shape.positions
    step = max(1, int((_TILE / pair) ** 0.5))
    for rows, columns in tiles(f.samples, h.samples, step, symmetric):
        a = f.features.write(rows, f.cotangents, scratch, "crossed, left")[:, 0]
        b = h.features.write(columns, h.cotangents, scratch, "crossed, right")[:, 0]
        by_left = _between(f.cotangents[rows, :, 0], b, h.shape.sparse)
        by_right = _between(h.cotangents[columns, :, 0], a, f.shape.sparse)
        products = torch.einsum(_CROSSED[pairing], by_left, by_right).to(out.dtype)
        if pairing is Pairing.FULL:
            out[0].view(-1, q, out.shape[2] // q, q)[rows, :, columns] += products
        else:
            place = out[:, rows, columns]
            place += products


def _between(cotangents: Tensor, features: Tensor, sparse: bool) -> Tensor:
    """Return G_i,k[t] · A_j[s] as [i, k, j, s, t], from [i, k, o, t] and [j, s, o] or tokens."""
    if sparse:
        chosen = cotangents[:, :, features[..., 0].flatten()]
        return chosen.unflatten(2, features.shape[:2])
    return torch.einsum("ikot,jso->ikjst", cotangents, features.to(cotangents.dtype))
