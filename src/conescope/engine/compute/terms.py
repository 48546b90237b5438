"""Terms, and the kernel as the sum of their products.

A term is the summand of the kernel that belongs to one weight, or to many small parameters. It
collects what it needs from many samples, one cotangent at a time, and then adds its product with
another term of the same parameters (or with itself) into the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from conescope.engine.compute.factors import Factors, add_gradient_products, add_position_products
from conescope.engine.compute.products import Memory, Scratch, add_products, full_precision, mirror
from conescope.engine.compute.shape import Pairing, Shape
from conescope.engine.compute.tied import add_tied_products, add_token_products

_MANY_PARAMETERS = 2**20
_LARGE_KERNEL = 2**20
"""Kernels are added up in float64. Only those of more numbers than these, of models with fewer
parameters than these, whose sums are short, are added up in the kernel's own dtype."""


class Term(Protocol):
    """The interface of every kind of term.

    Attributes:
        samples: n.
    """

    samples: int

    @property
    def device(self) -> torch.device:
        """The device of the term's numbers."""
        ...

    def add_to(self, out: Tensor, other: Any, pairing: Pairing, scratch: Scratch) -> None:
        """Add the products with another term of the same parameters, or with itself.

        Args:
            out: the matrices that `pairing` makes of q cotangents, [matrices, n · rows, m · rows].
            other: the other term, of the same kind; None for itself, which has to fill the lower
                triangles only.
            pairing: which cotangents are multiplied.
            scratch: buffers.
        """


class RowsTerm:
    """Parameters whose per-sample gradients are formed at once, and kept as rows [n, q, p].

    Args:
        sizes: parameter name → number of elements, side by side in a row.
        samples: n.
        cotangents: q, the number of cotangents.
        like: a tensor of the dtype and device.
        store: where the rows wait.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        samples: int,
        cotangents: int,
        like: Tensor,
        store: Memory,
    ) -> None:
        self.samples = samples
        self.columns: dict[str, slice] = {}
        width = 0
        for name, size in sizes.items():
            self.columns[name] = slice(width, width + size)
            width += size
        self.rows = store.take((samples, cotangents, width), like).zero_()
        self.device = like.device

    def place(self, name: str, block: slice, cotangent: int) -> Tensor:
        """Return where the gradients of one parameter belong, [b, p]."""
        return self.rows[block, cotangent, self.columns[name]]

    def add_to(
        self, out: Tensor, other: RowsTerm | None, pairing: Pairing, scratch: Scratch
    ) -> None:
        """Add the products of the rows; see `Term.add_to`."""
        del scratch
        q = self.rows.shape[1]
        for part in pairing.together(q, 1) if pairing is Pairing.APART else [slice(0, q)]:
            right = None if other is None else other.rows[:, part]
            add_products(out, part, self.rows[:, part], right, pairing)


class FormedTerm:
    """A weight of outer products whose per-sample gradients take less memory than their factors.

    Where the cotangents are summed over, those whose inner products are computed together lie in
    a tensor of their own.

    Args:
        shape: the sizes of the weight.
        samples: n.
        cotangents: q.
        pairing: which of them are multiplied.
        like: a tensor of the dtype and device.
        store: where the gradients wait.
    """

    def __init__(
        self,
        shape: Shape,
        samples: int,
        cotangents: int,
        pairing: Pairing,
        like: Tensor,
        store: Memory,
    ) -> None:
        self.samples = samples
        g, o, a = shape.groups, shape.outputs, shape.inputs
        self.groups = [
            (part, store.take((samples, part.stop - part.start, g, o, a), like))
            for part in pairing.together(cotangents, shape.size)
        ]

    @property
    def rows(self) -> Tensor:
        """A tensor of the dtype and device of the gradients."""
        return self.groups[0][1]

    @property
    def device(self) -> torch.device:
        """The device of the gradients."""
        return self.rows.device

    def form(self, block: slice, cotangents: slice, term: OuterTerm, scratch: Scratch) -> None:
        """Form the gradients of a block of samples for some cotangents from their factors.

        Args:
            block: the samples.
            cotangents: their numbers, all or one.
            term: the factors of this block and these cotangents.
            scratch: buffers.
        """
        places = []
        for part, rows in self.groups:
            first, last = max(part.start, cotangents.start), min(part.stop, cotangents.stop)
            if first < last:
                here = slice(first - cotangents.start, last - cotangents.start)
                places.append((here, rows[block, first - part.start : last - part.start]))
        term.write_gradients(slice(0, self.rows.shape[3]), places, scratch)

    def add_to(
        self, out: Tensor, other: FormedTerm | None, pairing: Pairing, scratch: Scratch
    ) -> None:
        """Add the products of the rows; see `Term.add_to`."""
        del scratch
        others = [None] * len(self.groups) if other is None else [rows for _, rows in other.groups]
        for (part, rows), right in zip(self.groups, others, strict=True):
            add_products(out, part, rows, right, pairing)


class OuterTerm(Factors):
    """A weight of outer products whose factors are kept until the products are made."""

    def add_to(
        self, out: Tensor, other: OuterTerm | None, pairing: Pairing, scratch: Scratch
    ) -> None:
        """Add the products by the cheapest route; see `Term.add_to`."""
        q = self.cotangents.shape[1]
        pairing = Pairing.SUMMED if q == 1 else pairing
        m = None if other is None else other.samples
        add = {
            "tokens": add_token_products,
            "positions": add_position_products,
            "gradients": add_gradient_products,
        }
        add[self.shape.cost(self.samples, m, q, pairing).route](out, self, other, pairing, scratch)


class TiedTerm:
    """A weight of uses of several kinds, such as an embedding that is the head's weight, too.

    Args:
        kinds: the factors of each kind.
    """

    def __init__(self, kinds: Sequence[OuterTerm]) -> None:
        self.kinds = kinds
        self.samples, self.device = kinds[0].samples, kinds[0].device

    def add_to(
        self, out: Tensor, other: TiedTerm | None, pairing: Pairing, scratch: Scratch
    ) -> None:
        """Add the products of each kind, and those between kinds; see `Term.add_to`."""
        pairing = Pairing.SUMMED if self.kinds[0].cotangents.shape[1] == 1 else pairing
        others = [None] * len(self.kinds) if other is None else other.kinds
        for kind, right in zip(self.kinds, others, strict=True):
            kind.add_to(out, right, pairing, scratch)
        add_tied_products(out, self.kinds, None if other is None else other.kinds, pairing, scratch)


class Accumulator:
    """The kernels of each layer while they are made, as matrices [n · rows, m · rows].

    Args:
        layers: the names of the layers.
        samples: n and m; m None for the kernel between x and itself.
        cotangents: q.
        pairing: which of them are multiplied; decides how many matrices and rows there are.
        parameters: how many real numbers the parameters hold.
        like: an empty tensor of the kernel's dtype and device.

    Attributes:
        bytes_beyond_result: what the matrices take while they are made, beside the result.
    """

    def __init__(
        self,
        layers: Iterable[str],
        samples: tuple[int, int | None],
        cotangents: int,
        pairing: Pairing,
        parameters: int,
        like: Tensor,
    ) -> None:
        n, m = samples
        self.rows, self.pairing, self.symmetric = pairing.rows(cotangents), pairing, m is None
        shape = n * self.rows, (n if m is None else m) * self.rows
        exact = parameters >= _MANY_PARAMETERS or shape[0] * shape[1] <= _LARGE_KERNEL
        dtype = torch.float64 if exact else like.dtype
        self.like = like.new_empty(0, dtype=dtype)
        self.shape = (pairing.matrices(cotangents), *shape)
        self.layers = {layer: self.like.new_zeros(self.shape) for layer in dict.fromkeys(layers)}
        self.elsewhere: dict[tuple[str, torch.device], Tensor] = {}
        held = sum(values.nbytes for values in self.layers.values())
        self.bytes_beyond_result = held if dtype != like.dtype else 0

    def add(
        self,
        left: Mapping[str, list[Term]],
        right: Mapping[str, list[Term]] | None,
        row: int,
        column: int,
        cotangents: slice,
        scratch: Scratch,
        store: Memory,
    ) -> None:
        """Add the products of two chunks, whose first samples are `row` and `column`.

        `cotangents` are the numbers of those that they hold.
        """
        part = cotangents if self.pairing is Pairing.APART else slice(0, 1)
        for layer, terms in left.items():
            others = terms if right is None else right[layer]
            for term, other in zip(terms, others, strict=True):
                place = self._matrices(layer, term.device)
                place = place[part, row * self.rows :, column * self.rows :]
                place = place[:, : term.samples * self.rows, : other.samples * self.rows]
                with full_precision():
                    term.add_to(place, None if right is None else other, self.pairing, scratch)
                store.release()

    def _matrices(self, layer: str, device: torch.device) -> Tensor:
        if device == self.like.device:
            return self.layers[layer]
        key = layer, device
        if key not in self.elsewhere:
            self.elsewhere[key] = self.like.new_zeros(self.shape, device=device)
        return self.elsewhere[key]

    def finish(self) -> dict[str, Tensor]:
        """Return layer → matrices on one device, symmetric to the last bit where x is y."""
        for (layer, _), values in self.elsewhere.items():
            self.layers[layer] += values.to(self.like.device)
        if self.symmetric:
            for matrices in self.layers.values():
                for matrix in matrices:
                    mirror(matrix)
        return self.layers


def sum_of(parts: Mapping[str, Tensor]) -> Tensor:
    """Add up kernels in their order, in float64, and round the sum to their dtype."""
    first, *others = parts.values()
    total = first.double() if first.dtype != torch.float64 else first.clone()
    for part in others:
        total += part
    return total.to(first.dtype)
