"""From a model and samples to the terms of its kernel: one forward pass, q backward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from conescope.engine.assignment import layer_of
from conescope.engine.attempt import RoutesChangedError, attempted
from conescope.engine.calls import Call, OuterCall, Role
from conescope.engine.forward import feedable, forward, refuse_other_outputs
from conescope.engine.general import plain_gradients, transformed_gradients
from conescope.engine.independence import compare, hold
from conescope.engine.problem import Problem
from conescope.engine.products import Scratch
from conescope.engine.routes import follow, refuse_exchanged_samples
from conescope.engine.selfcheck import bounds_of, refuse_mixed_gradients
from conescope.engine.terms import FormedTerm, OuterTerm, RowsTerm, Term

Open = Mapping[str, tuple[slice, OuterTerm]]
"""Weight → (the block's place in a term, the term that takes the block's factors)."""


class Factory:
    """Makes the terms of any samples for any cotangents.

    Args:
        problem: whose model, parameters, survey and witness are used.
        by_layer: whether terms of different layers have to stay apart.
        block: samples of one forward pass.
        dtype: of the factors, and so of the products.
        scratch: buffers.
        verify: whether to hold every batch to the places of its samples, which is done in any
            case for models that pick by an index.
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
        self.verify = verify or self.survey.routes.picks

    def __call__(self, x: Tensor, directions: Tensor) -> dict[str, list[Term]]:
        """Layer → terms of the samples x; all under "" unless by layer.

        Raises:
            RoutesChangedError: if the model does not keep to the routes.
            ModelError: if samples depend on each other, or no route follows the model.
        """
        collector = _Collector(self, len(x), directions)
        routes = self.survey.routes
        for start in range(0, len(x), self.block):
            block = slice(start, min(len(x), start + self.block))
            if routes.ruled:
                collector.absorb(block, x[block])
            if routes.general:
                collector.absorb_general(block, x[block])
        return collector.terms

    def layer(self, parameter: str) -> str:
        """The layer under which a parameter's term is kept."""
        return layer_of(parameter) if self.by_layer else ""


class _Collector:
    """Terms in the making, filled block by block."""

    def __init__(self, factory: Factory, samples: int, directions: Tensor) -> None:
        self.factory = factory
        self.directions = directions
        self.assignment = factory.survey.assignment
        self.terms: dict[str, list[Term]] = {}
        self.outer: dict[str, OuterTerm] = {}
        self.formed: dict[str, FormedTerm] = {}
        self.rows: dict[str, RowsTerm] = {}
        self.row_uses: dict[int, dict[Role, str]] = {}
        for name, places in self.assignment.rows.items():
            for number, role in places:
                self.row_uses.setdefault(number, {})[role] = name
        self._build(samples, directions.new_empty(0, dtype=factory.dtype))

    def absorb(self, block: slice, x: Tensor) -> None:
        """Take in the samples x, which are a block of all."""
        factory, problem = self.factory, self.factory.problem
        routes = factory.survey.routes
        outputs, calls = follow(problem.model, problem.parameters, x, routes)
        refuse_other_outputs(outputs, self.directions.shape[1])
        if factory.verify and calls:
            refuse_exchanged_samples(outputs, calls)
        open_terms = self._open(block, calls)
        targets = [call.target for call in calls]
        last = len(self.directions) - 1
        gradients: Sequence[Tensor | None] = ()
        for k, direction in enumerate(self.directions if calls else ()):
            with attempted():
                gradients = torch.autograd.grad(
                    outputs,
                    targets,
                    direction.expand_as(outputs),
                    retain_graph=k < last,
                    allow_unused=True,
                )
            if any(gradients[number] is not None for number in routes.idle):
                raise RoutesChangedError
            self._take_outer(open_terms, k, calls, gradients)
            self._take_rows(block, k, calls, gradients)
            self._form(block, slice(k, k + 1), open_terms, stacked=False)
        self._form(block, slice(0, last + 1), open_terms, stacked=True)
        # only now: another forward pass may write what the backward passes need
        self._compare(x, outputs.detach(), calls, gradients)

    def _compare(
        self,
        x: Tensor,
        outputs: Tensor,
        calls: Sequence[Call],
        gradients: Sequence[Tensor | None],
    ) -> None:
        """Compare outputs, and the last cotangent's gradients, with those of parts of the batch."""
        problem, witness = self.factory.problem, self.factory.problem.witness
        if witness is None:
            return
        witness.refuse_not_finite(outputs, x.dtype)
        parts = witness.parts(x)
        if witness.thorough or not calls or not problem.checks_gradients:
            compare(problem.model, x, outputs, parts)
            return
        for part in parts:
            alone, again = follow(problem.model, problem.parameters, x[part], problem.survey.routes)
            hold(problem.model, x, outputs, part, alone.detach())
            with attempted():
                targets = [call.target for call in again]
                direction = self.directions[-1].expand_as(alone)
                found = torch.autograd.grad(alone, targets, direction, allow_unused=True)
            bound = bounds_of(problem).alone
            for call, g, other, h in zip(calls, gradients, again, found, strict=True):
                if g is None or h is None:
                    continue
                whole, single = call.of_samples(g, part), other.of_samples(h, slice(None))
                if whole.shape == single.shape and bool(
                    (whole - single).norm() > bound * single.norm()
                ):
                    refuse_mixed_gradients(problem, x)
                    raise RoutesChangedError

    def absorb_general(self, block: slice, x: Tensor) -> None:
        """Take in the gradients of the samples x, a block of all, by the general route."""
        problem, routes = self.factory.problem, self.factory.survey.routes
        if not routes.ruled and problem.witness is not None and problem.witness.thorough:
            outputs = forward(problem.model, feedable(x)).detach()
            self._compare(x, outputs, (), ())
        chosen = {name: problem.parameters[name] for name in routes.general}
        if routes.transformed:
            try:
                rows = transformed_gradients(problem.model, chosen, x, self.directions)
            except RoutesChangedError:
                rows = {}
            for name, gradients in rows.items():
                for k in range(gradients.shape[1]):
                    self.rows[name].place(name, block, k).copy_(gradients[:, k])
            if rows:
                return
        passes = plain_gradients(problem.model, chosen, x, self.directions, routes.reentrant)
        for i, k, gradients in passes:
            for name, gradient in gradients.items():
                self.rows[name].place(name, block, k)[i] = gradient

    def _form(
        self,
        block: slice,
        directions: slice,
        terms: Open,
        stacked: bool,
    ) -> None:
        """Form the gradients of some cotangents of a block, of the terms that stack them or not."""
        for name, formed in self.formed.items():
            if self.factory.survey.shapes[name].stacks(len(self.directions)) == stacked:
                formed.form(block, directions, terms[name][1], self.factory.scratch)

    def _open(self, block: slice, calls: Sequence[Call]) -> Open:
        """The terms that take in a block."""
        terms: dict[str, tuple[slice, OuterTerm]] = {}
        for name, (numbers, _) in self.assignment.outer.items():
            uses = _outer_calls(calls, numbers)
            if name in self.outer:
                self.outer[name].features.append(block, uses)
                terms[name] = block, self.outer[name]
            else:
                whole = slice(0, block.stop - block.start)

                def allocate(shape: tuple[int, ...], name: str = name) -> Tensor:
                    return self.factory.scratch.take(name, shape, self.formed[name].rows)

                shape = self.factory.survey.shapes[name]
                held = len(self.directions) if shape.stacks(len(self.directions)) else 1
                term = OuterTerm(shape, whole.stop, held, allocate)
                term.features.append(whole, uses)
                terms[name] = whole, term
        return terms

    def _take_outer(
        self, terms: Open, k: int, calls: Sequence[Call], gradients: Sequence[Tensor | None]
    ) -> None:
        for name, (block, term) in terms.items():
            for use, number in enumerate(self.assignment.outer[name][0]):
                g, call = gradients[number], calls[number]
                place = term.place(use, block, k if term.cotangents.shape[1] > 1 else 0)
                if g is None or not isinstance(call, OuterCall):
                    place.zero_()
                else:
                    place.copy_(call.cotangent(g))

    def _take_rows(
        self, block: slice, k: int, calls: Sequence[Call], gradients: Sequence[Tensor | None]
    ) -> None:
        for number, names in self.row_uses.items():
            g = gradients[number]
            if g is not None:
                for role, rows in calls[number].rows(g, names).items():
                    self.rows[names[role]].place(names[role], block, k).add_(rows)

    def _build(self, samples: int, like: Tensor) -> None:
        factory, q = self.factory, len(self.directions)
        for name, shape in factory.survey.shapes.items():
            if shape.formed:
                term = self.formed[name] = FormedTerm(shape, samples, q, factory.problem.full, like)
            else:
                term = self.outer[name] = OuterTerm(shape, samples, q, like.new_empty)
            self.terms.setdefault(factory.layer(name), []).append(term)
        sizes: dict[str, dict[str, int]] = {}
        for name, size in factory.survey.rows.items():
            sizes.setdefault(factory.layer(name), {})[name] = size
        for layer, together in sizes.items():
            term = RowsTerm(together, samples, q, like)
            self.rows |= dict.fromkeys(together, term)
            self.terms.setdefault(layer, []).append(term)


def _outer_calls(calls: Sequence[Call], numbers: Sequence[int]) -> list[OuterCall]:
    return [call for n in numbers if isinstance(call := calls[n], OuterCall)]
