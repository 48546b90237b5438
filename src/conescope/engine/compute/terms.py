"""Terms, and the kernel as the sum of their products.

A term is the summand of the kernel that belongs to one weight, or to many small parameters. It
collects what it needs from many samples, one cotangent at a time, and then adds its product with
another term of the same parameters (or with itself) into the kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from conescope.engine.compute.contractions import (
    add_gradient_products,
    add_position_products,
    together,
)
from conescope.engine.compute.outer import Factors, Shape
from conescope.engine.compute.products import Scratch, add_gram, matrix, mirror

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

    def add_to(self, out: Tensor, other: Any, full: bool, scratch: Scratch) -> None:
        """Add the products with another term of the same parameters, or with itself.

        Args:
            out: [n·q, m·q] if `full`, else [n, m].
            other: the other term, of the same kind; None for itself, which touches the lower
                triangle only.
            full: whether the q cotangents stay apart, or are summed over.
            scratch: buffers.
        """


class RowsTerm:
    """Parameters whose per-sample gradients are formed at once, and kept as rows [n, q, p].

    Args:
        sizes: parameter name → number of elements, side by side in a row.
        samples: n.
        cotangents: q, the number of cotangents.
        like: a tensor of the dtype and device.
    """

    def __init__(
        self, sizes: Mapping[str, int], samples: int, cotangents: int, like: Tensor
    ) -> None:
        self.samples = samples
        self.columns: dict[str, slice] = {}
        width = 0
        for name, size in sizes.items():
            self.columns[name] = slice(width, width + size)
            width += size
        self.rows = like.new_zeros(samples, cotangents, width)

    def place(self, name: str, block: slice, cotangent: int) -> Tensor:
        """Return where the gradients of one parameter belong, [b, p]."""
        return self.rows[block, cotangent, self.columns[name]]

    def add_to(self, out: Tensor, other: RowsTerm | None, full: bool, scratch: Scratch) -> None:
        """Add the products of the rows; see `Term.add_to`."""
        del scratch
        add_gram(out, matrix(self.rows, full), None if other is None else matrix(other.rows, full))


class FormedTerm:
    """A weight of outer products whose per-sample gradients take less memory than their factors.

    Where the cotangents are summed over, those whose inner products are computed together lie in
    a tensor of their own.

    Args:
        shape: the sizes of the weight.
        samples: n.
        cotangents: q.
        full: whether the products need all cotangents at once.
        like: a tensor of the dtype and device.
    """

    def __init__(
        self, shape: Shape, samples: int, cotangents: int, full: bool, like: Tensor
    ) -> None:
        self.samples = samples
        g, o, a = shape.groups, shape.outputs, shape.inputs
        self.groups = [
            (part, like.new_empty(samples, part.stop - part.start, g, o, a))
            for part in together(cotangents, shape.size, full)
        ]

    @property
    def rows(self) -> Tensor:
        """A tensor of the dtype and device of the gradients."""
        return self.groups[0][1]

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

    def add_to(self, out: Tensor, other: FormedTerm | None, full: bool, scratch: Scratch) -> None:
        """Add the products of the rows; see `Term.add_to`."""
        del scratch
        others = [None] * len(self.groups) if other is None else [rows for _, rows in other.groups]
        for (_, rows), right in zip(self.groups, others, strict=True):
            add_gram(out, matrix(rows, full), None if right is None else matrix(right, full))


class OuterTerm(Factors):
    """A weight of outer products whose factors are kept until the products are made."""

    def add_to(self, out: Tensor, other: OuterTerm | None, full: bool, scratch: Scratch) -> None:
        """Add the products by the cheaper contraction; see `Term.add_to`."""
        full = full and self.cotangents.shape[1] > 1
        m = None if other is None else other.samples
        if self.shape.by_positions(self.samples, m, self.cotangents.shape[1], full):
            add_position_products(out, self, other, full, scratch)
        else:
            add_gradient_products(out, self, other, full, scratch)


class Accumulator:
    """The kernel of each layer while it is made, as matrices [n·q, m·q] or [n, m].

    Args:
        layers: the names of the layers.
        samples: n and m; m None for the kernel between x and itself.
        cotangents: q if the cotangents stay apart, otherwise 1.
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
        parameters: int,
        like: Tensor,
    ) -> None:
        n, m = samples
        self.q, self.symmetric = cotangents, m is None
        shape = n * self.q, (n if m is None else m) * self.q
        exact = parameters >= _MANY_PARAMETERS or shape[0] * shape[1] <= _LARGE_KERNEL
        dtype = torch.float64 if exact else like.dtype
        self.layers = {layer: like.new_zeros(shape, dtype=dtype) for layer in dict.fromkeys(layers)}
        held = sum(values.nbytes for values in self.layers.values())
        self.bytes_beyond_result = held if dtype != like.dtype else 0

    def add(
        self,
        left: Mapping[str, list[Term]],
        right: Mapping[str, list[Term]] | None,
        row: int,
        column: int,
        full: bool,
        scratch: Scratch,
    ) -> None:
        """Add the products of two chunks, whose first samples are `row` and `column`."""
        for layer, terms in left.items():
            others = terms if right is None else right[layer]
            for term, other in zip(terms, others, strict=True):
                place = self.layers[layer][row * self.q :, column * self.q :]
                place = place[: term.samples * self.q, : other.samples * self.q]
                term.add_to(place, None if right is None else other, full, scratch)

    def finish(self) -> dict[str, Tensor]:
        """Return layer → matrix, symmetric to the last bit where x is y."""
        if self.symmetric:
            for values in self.layers.values():
                mirror(values)
        return self.layers


def sum_of(parts: Mapping[str, Tensor]) -> Tensor:
    """Add up kernels in their order, in float64, and round the sum to their dtype."""
    first, *others = parts.values()
    total = first.double() if first.dtype != torch.float64 else first.clone()
    for part in others:
        total += part
    return total.to(first.dtype)
