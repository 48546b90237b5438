"""A kernel in the making: the sum of the products of all chunks and layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from conescope.engine.assignment import layer_of
from conescope.engine.problem import Problem
from conescope.engine.products import Scratch, mirror
from conescope.engine.survey import real_numbers
from conescope.engine.terms import Term

_MANY_PARAMETERS = 2**20
_LARGE_KERNEL = 2**20
"""Kernels are added up in float64. Only those of more numbers than these, of models with fewer
parameters than these, whose sums are short, are added up in the kernel's own dtype."""


class Accumulator:
    """The kernel of each layer in the making, as matrices [n·q, m·q] or [n, m].

    Attributes:
        bytes_beyond_result: what the matrices take while they are made, beside the result.
    """

    def __init__(self, problem: Problem, by_layer: bool) -> None:
        self.full = problem.full
        self.q = len(problem.cotangents) if self.full else 1
        self.symmetric = problem.y is None
        columns = len(problem.x if problem.y is None else problem.y)
        shape = len(problem.x) * self.q, columns * self.q
        parameters = sum(map(real_numbers, problem.parameters.values()))
        exact = parameters >= _MANY_PARAMETERS or shape[0] * shape[1] <= _LARGE_KERNEL
        dtype = torch.float64 if exact else problem.dtype
        names = map(layer_of, problem.parameters) if by_layer else [""]
        like = problem.cotangents.like
        self.layers = {layer: like.new_zeros(shape, dtype=dtype) for layer in dict.fromkeys(names)}
        held = sum(values.nbytes for values in self.layers.values())
        self.bytes_beyond_result = held if dtype != problem.dtype else 0

    def add(
        self,
        left: Mapping[str, list[Term]],
        right: Mapping[str, list[Term]] | None,
        row: int,
        column: int,
        scratch: Scratch,
    ) -> None:
        """Add the products of two chunks, whose first samples are `row` and `column`."""
        for layer, terms in left.items():
            others = terms if right is None else right[layer]
            for term, other in zip(terms, others, strict=True):
                place = self.layers[layer][row * self.q :, column * self.q :]
                place = place[: term.samples * self.q, : other.samples * self.q]
                term.add_to(place, None if right is None else other, self.full, scratch)

    def finish(self) -> dict[str, Tensor]:
        """Layer → matrix, symmetric to the last bit where x is y."""
        if self.symmetric:
            for values in self.layers.values():
                mirror(values)
        return self.layers


def sum_of(parts: Mapping[str, Tensor]) -> Tensor:
    """The sum in one order, added up in float64 and rounded to the dtype of the parts."""
    first, *others = parts.values()
    total = first.double() if first.dtype != torch.float64 else first.clone()
    for part in others:
        total += part
    return total.to(first.dtype)
