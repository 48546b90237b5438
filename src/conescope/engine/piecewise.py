"""Add up the kernel of a problem piece by piece, within a budget of memory."""

from __future__ import annotations

from contextlib import closing
from typing import Literal

import torch
from torch import Tensor

from conescope.engine.compute.allocator import keep_freed_pages
from conescope.engine.compute.budget import Cut
from conescope.engine.compute.products import Memory, Scratch
from conescope.engine.compute.spill import TemporaryFile
from conescope.engine.compute.terms import Accumulator
from conescope.engine.passes import Factory
from conescope.engine.problem import Problem
from conescope.engine.tracing.survey import layer_of, real_numbers

Precision = Literal["model", "bfloat16"]


def kernel_of(
    problem: Problem, by_layer: bool, precision: Precision, budget: int, verify: bool = False
) -> dict[str, Tensor]:
    """Return layer → the matrices of the pairing, in the dtype in which they were added up.

    Args:
        problem: the problem, inside `prepared`.
        by_layer: whether to keep the summands of each layer apart; all are under "" otherwise.
        precision: see `entk`.
        budget: bytes.
        verify: see `BlockPass.backward`.

    Raises:
        RoutesChangedError: if the model does not keep to the routes.
        ModelError: if samples depend on each other, or no route follows the model.
        KernelError: if the budget is too small.
    """
    keep_freed_pages()
    accumulator = Accumulator(
        map(layer_of, problem.parameters) if by_layer else [""],
        problem.samples,
        len(problem.cotangents),
        problem.pairing,
        sum(map(real_numbers, problem.parameters.values())),
        problem.cotangents.like.to(problem.dtype),
    )
    dtype = torch.bfloat16 if precision == "bfloat16" else problem.dtype
    fixed = accumulator.bytes_beyond_result
    for part in problem.parts(budget - fixed):
        pieces = part.pieces(budget, fixed)
        factory = Factory(part, by_layer, pieces.block, dtype, Scratch(pieces.scratch), verify)
        if part.recheck is not None:
            part.recheck.expect(problem.x, pieces.block)
        for group in pieces.groups(len(part.cotangents)):
            _add_group(accumulator, factory, part, group, pieces)
    return accumulator.finish()


def _add_group(
    accumulator: Accumulator, factory: Factory, problem: Problem, group: slice, pieces: Cut
) -> None:
    """Add the products of all pairs of chunks, for some of the cotangents."""
    x, y = problem.x, problem.y
    cotangents = problem.cotangents.part(group.start, group.stop)
    held, terms = None, {}
    with closing(TemporaryFile() if pieces.spilled else Memory(pieces.tight)) as store:
        for left, right in pieces.pairs(*problem.samples):
            if left != held:
                held, terms = left, factory(x[left], cotangents, store)
            other, column = None, left
            if right is not None:
                other, column = factory((x if y is None else y)[right], cotangents, store), right
            accumulator.add(terms, other, left.start, column.start, group, factory.scratch, store)
