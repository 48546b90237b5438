"""Fill the terms of a kernel from passes of blocks of samples, and add them up piece by piece."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from conescope.engine.backward import BlockPass, ByCall, compare_outputs
from conescope.engine.compute.allocator import keep_freed_pages
from conescope.engine.compute.budget import Cut
from conescope.engine.compute.products import Memory, Scratch, full_precision
from conescope.engine.compute.scaled_term import ScaledTerm
from conescope.engine.compute.spill import TemporaryFile
from conescope.engine.compute.terms import (
    Accumulator,
    FormedTerm,
    OuterTerm,
    RowsTerm,
    Term,
    TiedTerm,
)
from conescope.engine.general import plain_gradients, transformed_gradients
from conescope.engine.layers.call import Call, OuterCall, Role
from conescope.engine.problem import Problem
from conescope.engine.tracing.forward import RoutesChangedError
from conescope.engine.tracing.survey import Part, layer_of, real_numbers

Precision = Literal["model", "bfloat16"]
Open = Mapping[str, Sequence[tuple[Part, slice, OuterTerm]]]
"""Weight → its uses of each kind, where in a term the block goes, and the term that takes it."""


class Factory:
    """A maker of the terms of any samples for any cotangents.

    Args:
        problem: what is computed.
        by_layer: whether terms of different layers have to stay apart.
        block: samples of one forward pass.
        dtype: the dtype of the factors, and so of the products.
        scratch: buffers.
        verify: see `BlockPass.backward`.
    """

    def __init__(
        self,
        problem: Problem,
        by_layer: bool,
        block: int,
        dtype: torch.dtype,
        scratch: Scratch,
        verify: bool = False,
    ) -> None:
        self.problem = problem
        self.survey = problem.survey
        self.by_layer = by_layer
        self.block = block
        self.dtype = dtype
        self.scratch = scratch
        self.verify = verify

    def __call__(self, x: Tensor, cotangents: Tensor, store: Memory) -> dict[str, list[Term]]:
        """Return layer → terms of the samples x; all under "" unless by layer.

        Args:
            x: [n, …].
            cotangents: [q, c].
            store: where factors wait for their products.

        Raises:
            RoutesChangedError: if the model does not keep to the routes.
            ModelError: if samples depend on each other, or no route follows the model.
        """
        collector = _Collector(self, len(x), cotangents, store)
        routes = self.survey.routes
        for start in range(0, len(x), self.block):
            block = slice(start, min(len(x), start + self.block))
            if routes.ruled:
                collector.add_by_rules(block, x[block])
            if routes.general:
                collector.add_by_general_route(block, x[block])
            store.release()
        return collector.terms

    def layer(self, parameter: str) -> str:
        """Return the layer under which a parameter's term is kept."""
        return layer_of(parameter) if self.by_layer else ""


class _Collector:
    """Terms that are filled block by block."""

    def __init__(self, factory: Factory, samples: int, cotangents: Tensor, store: Memory) -> None:
        self.factory, self.store, self.problem = factory, store, factory.problem
        self.cotangents = cotangents
        self.assignment = factory.survey.assignment
        self.terms: dict[str, list[Term]] = {}
        self.outer: dict[str, list[OuterTerm]] = {}
        self.formed: dict[str, FormedTerm] = {}
        self.rows: dict[str, RowsTerm] = {}
        self.row_uses: dict[int, dict[Role, str]] = {}
        for name, places in self.assignment.rows.items():
            for number, role in places:
                self.row_uses.setdefault(number, {})[role] = name
        self._build(samples, cotangents.new_empty(0, dtype=factory.dtype))

    def add_by_rules(self, block: slice, x: Tensor) -> None:
        """Take in a block of samples, x, by the layer rules."""
        done = BlockPass(self.factory.problem, x)
        open_terms = self._open(block, done.calls)
        for k, gradients in done.backward(self.cotangents, self.factory.verify):
            self._take_outer(open_terms, k, done.calls, gradients)
            self._take_rows(block, k, done.calls, gradients)
            del gradients
            self._form(block, slice(k, k + 1), open_terms, stacked=False)
        self._form(block, slice(0, len(self.cotangents)), open_terms, stacked=True)
        for term in itertools.chain.from_iterable(self.outer.values()):
            term.features.keep_in(self.store)
        done.compare()

    def add_by_general_route(self, block: slice, x: Tensor) -> None:
        """Take in a block of samples, x, by the general route."""
        problem, routes = self.problem, self.factory.survey.routes
        if not routes.ruled:
            compare_outputs(problem, x)
        chosen = {name: problem.parameters[name] for name in routes.general}
        if routes.transformed:
            try:
                rows = transformed_gradients(problem.model, chosen, x, self.cotangents)
            except RoutesChangedError:
                rows = {}
            for name, gradients in rows.items():
                for k in range(gradients.shape[1]):
                    scaled = problem.scaled(name, gradients[:, k])
                    self.rows[name].place(name, block, k).copy_(scaled)
            if rows:
                return
        passes = plain_gradients(problem.model, chosen, x, self.cotangents, routes.reentrant)
        for i, k, gradients in passes:
            for name, gradient in gradients.items():
                self.rows[name].place(name, block, k)[i] = problem.scaled(name, gradient)

    def _form(self, block: slice, cotangents: slice, terms: Open, stacked: bool) -> None:
        """Form the gradients of a block, in terms that stack cotangents or in those that do not."""
        for name, formed in self.formed.items():
            ((_, _, term),) = terms[name]
            if term.shape.stacks(len(self.cotangents)) == stacked:
                with full_precision():
                    formed.form(block, cotangents, term, self.factory.scratch)

    def _open(self, block: slice, calls: Sequence[Call]) -> Open:
        """Return the terms that take the factors of a block."""
        return {
            name: [
                (
                    part,
                    *self._open_part(name, number, block, [_outer(calls[n]) for n in part.calls]),
                )
                for number, part in enumerate(parts)
            ]
            for name, parts in self.assignment.outer.items()
        }

    def _open_part(
        self, name: str, number: int, block: slice, uses: Sequence[OuterCall]
    ) -> tuple[slice, OuterTerm]:
        if name in self.outer:
            term = self.outer[name][number]
        else:
            block = slice(0, block.stop - block.start)
            (shape,), like = self.factory.survey.work.shapes[name], self.formed[name].rows
            held = len(self.cotangents) if shape.stacks(len(self.cotangents)) else 1
            allocate = partial(self.factory.scratch.take, name, like=like)
            term = self._term(name, shape, block.stop, held, allocate)
        if isinstance(term, ScaledTerm) and self.problem.roots is not None:
            term.scale = self.problem.roots.of_weight(name, uses[0])
        term.features.append(block, uses)
        return block, term

    def _term(self, name: str, *of: Any) -> OuterTerm:
        """Return a term of a weight; the other arguments are those of `OuterTerm`."""
        roots = self.problem.roots
        return (OuterTerm if roots is None or name in roots.uniform else ScaledTerm)(*of)

    def _take_outer(self, terms: Open, k: int, calls: Sequence[Call], gradients: ByCall) -> None:
        roots = self.problem.roots
        for name, parts in terms.items():
            for part, block, term in parts:
                for use, number in enumerate(part.calls):
                    g, call = gradients[number], _outer(calls[number])
                    place = term.place(use, block, k if term.cotangents.shape[1] > 1 else 0)
                    if g is None:
                        place.zero_()
                        continue
                    place.copy_(call.cotangent(g))
                    if roots is not None:
                        roots.multiply(name, place, call)

    def _take_rows(self, block: slice, k: int, calls: Sequence[Call], gradients: ByCall) -> None:
        for number, names in self.row_uses.items():
            g = gradients[number]
            if g is not None:
                g = g.to(torch.promote_types(g.dtype, torch.float32))  # before sums over positions
                for role, rows in calls[number].rows(g, names).items():
                    place = self.rows[names[role]].place(names[role], block, k)
                    place.add_(self.problem.scaled(names[role], rows).to(place.device))

    def _build(self, samples: int, like: Tensor) -> None:
        factory, q = self.factory, len(self.cotangents)
        work, parameters = factory.survey.work, factory.problem.parameters
        for name, shapes in work.shapes.items():
            here = like.to(parameters[name].device)
            if shapes[0].formed:
                pairing = factory.problem.pairing
                term = self.formed[name] = FormedTerm(
                    shapes[0], samples, q, pairing, here, self.store
                )
            else:
                allocate = partial(self.store.take, like=here)
                kinds = [self._term(name, shape, samples, q, allocate) for shape in shapes]
                self.outer[name] = kinds
                term = kinds[0] if len(kinds) == 1 else TiedTerm(kinds)
            self.terms.setdefault(factory.layer(name), []).append(term)
        sizes: dict[tuple[str, torch.device], dict[str, int]] = {}
        for name, size in (*work.rows.items(), *work.general.items()):
            place = factory.layer(name), parameters[name].device
            sizes.setdefault(place, {})[name] = size
        for (layer, device), together in sizes.items():
            term = RowsTerm(together, samples, q, like.to(device), self.store)
            self.rows |= dict.fromkeys(together, term)
            self.terms.setdefault(layer, []).append(term)


def _outer(call: Call) -> OuterCall:
    """Return a call whose weight has factors, as the survey has found."""
    assert call.outer is not None
    return call.outer


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
    problem = problem.preconditioned()
    accumulator = Accumulator(
        map(layer_of, problem.parameters) if by_layer else [""],
        problem.samples,
        len(problem.cotangents),
        problem.pairing,
        sum(map(real_numbers, problem.parameters.values())),
        problem.cotangents.like.to(problem.dtype),
    )
    dtype = torch.bfloat16 if precision == "bfloat16" else problem.dtype
    fixed = accumulator.bytes_beyond_result + problem.bytes_of_roots
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
