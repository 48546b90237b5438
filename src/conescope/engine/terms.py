"""A term: the summand of the kernel that belongs to one weight, or to many small parameters.

A term collects what it needs from many samples, one cotangent at a time, and then adds its
product with another term of the same parameters (or itself) into the kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from conescope.engine.contractions import (
    add_jacobian_products,
    add_position_products,
    by_positions,
    together,
)
from conescope.engine.outer import Factors
from conescope.engine.products import Scratch, add_gram, matrix
from conescope.engine.survey import Shape


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
        self.rows = like.new_zeros(samples, directions, width)

    def place(self, name: str, block: slice, direction: int) -> Tensor:
        """Where the gradients of one parameter belong, [b, p]."""
        return self.rows[block, direction, self.columns[name]]

    def add_to(self, out: Tensor, other: RowsTerm | None, full: bool, scratch: Scratch) -> None:
        """Out += rows rowsᵀ."""
        del scratch
        add_gram(out, matrix(self.rows, full), None if other is None else matrix(other.rows, full))


class FormedTerm:
    """An outer weight whose per-sample gradients take less memory than their factors.

    Where the cotangents are summed over, those whose inner products are computed together lie in
    a tensor of their own.

    Args:
        shape: of the weight.
        samples: n.
        directions: q.
        full: whether the products need all cotangents at once.
        like: a tensor of the dtype and device.
    """

    def __init__(
        self, shape: Shape, samples: int, directions: int, full: bool, like: Tensor
    ) -> None:
        self.samples = samples
        g, o, a = shape.groups, shape.outputs, shape.inputs
        self.groups = [
            (part, like.new_empty(samples, part.stop - part.start, g, o, a))
            for part in together(directions, shape.size, full)
        ]

    @property
    def rows(self) -> Tensor:
        """A tensor of the dtype and device of the gradients."""
        return self.groups[0][1]

    def form(self, block: slice, directions: slice, term: OuterTerm, scratch: Scratch) -> None:
        """Take in the gradients of a block of samples for some cotangents from their factors.

        Args:
            block: the samples.
            directions: the cotangents, all or one.
            term: the factors of this block and these cotangents.
            scratch: buffers.
        """
        places = []
        for part, rows in self.groups:
            first, last = max(part.start, directions.start), min(part.stop, directions.stop)
            if first < last:
                here = slice(first - directions.start, last - directions.start)
                places.append((here, rows[block, first - part.start : last - part.start]))
        term.jacobian(slice(0, self.rows.shape[3]), places, scratch)

    def add_to(self, out: Tensor, other: FormedTerm | None, full: bool, scratch: Scratch) -> None:
        """Out += rows rowsᵀ."""
        del scratch
        others = [None] * len(self.groups) if other is None else [rows for _, rows in other.groups]
        for (_, rows), right in zip(self.groups, others, strict=True):
            add_gram(out, matrix(rows, full), None if right is None else matrix(right, full))


class OuterTerm(Factors):
    """A weight with two factors, which are kept."""

    def add_to(self, out: Tensor, other: OuterTerm | None, full: bool, scratch: Scratch) -> None:
        """Out += this term's products, by the cheaper contraction."""
        full = full and self.cotangents.shape[1] > 1
        m = None if other is None else other.samples
        if by_positions(self.shape, self.samples, m, self.cotangents.shape[1], full):
            add_position_products(out, self, other, full, scratch)
        else:
            add_jacobian_products(out, self, other, full, scratch)
