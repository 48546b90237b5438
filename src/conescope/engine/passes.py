"""Fill the terms of a kernel: one forward pass of a block of samples, and q backward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from conescope.engine.compute.products import Scratch, full_precision
from conescope.engine.compute.terms import FormedTerm, OuterTerm, RowsTerm, Term
from conescope.engine.general import plain_gradients, transformed_gradients
from conescope.engine.independence import compare, compare_part
from conescope.engine.layers.call import Call, Role
from conescope.engine.problem import Problem
from conescope.engine.selfcheck import bounds_of, refuse_mixed_gradients
from conescope.engine.tracing.forward import (
    RoutesChangedError,
    attempted,
    feedable,
    forward,
    refuse_other_outputs,
)
from conescope.engine.tracing.routes import follow, refuse_exchanged_samples
from conescope.engine.tracing.survey import layer_of

Open = Mapping[str, tuple[slice, OuterTerm]]
"""Weight → (where in a term the block goes, the term that takes the factors of the block)."""


class Factory:
    """A maker of the terms of any samples for any cotangents.

    Args:
        problem: what is computed.
        by_layer: whether terms of different layers have to stay apart.
        block: samples of one forward pass.
        dtype: the dtype of the factors, and so of the products.
        scratch: buffers.
        verify: whether to check that the model keeps the order of samples in every batch, which
            is done in any case for models that pick by an index.
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

    def __call__(self, x: Tensor, cotangents: Tensor) -> dict[str, list[Term]]:
        """Return layer → terms of the samples x; all under "" unless by layer.

        Raises:
            RoutesChangedError: if the model does not keep to the routes.
            ModelError: if samples depend on each other, or no route follows the model.
        """
        collector = _Collector(self, len(x), cotangents)
        routes = self.survey.routes
        for start in range(0, len(x), self.block):
            block = slice(start, min(len(x), start + self.block))
            if routes.ruled:
                collector.add_by_rules(block, x[block])
            if routes.general:
                collector.add_by_general_route(block, x[block])
        return collector.terms

    def layer(self, parameter: str) -> str:
        """Return the layer under which a parameter's term is kept."""
        return layer_of(parameter) if self.by_layer else ""


class _Collector:
    """Terms that are filled block by block."""

    def __init__(self, factory: Factory, samples: int, cotangents: Tensor) -> None:
        self.factory = factory
        self.cotangents = cotangents
        self.assignment = factory.survey.assignment
        self.terms: dict[str, list[Term]] = {}
        self.outer: dict[str, OuterTerm] = {}
        self.formed: dict[str, FormedTerm] = {}
        self.rows: dict[str, RowsTerm] = {}
        self.row_uses: dict[int, dict[Role, str]] = {}
        for name, places in self.assignment.rows.items():
            for number, role in places:
                self.row_uses.setdefault(number, {})[role] = name
        self._build(samples, cotangents.new_empty(0, dtype=factory.dtype))

    def add_by_rules(self, block: slice, x: Tensor) -> None:
        """Take in a block of samples, x, by the layer rules."""
        factory, problem = self.factory, self.factory.problem
        routes = factory.survey.routes
        outputs, calls = follow(problem.model, problem.parameters, x, routes)
        refuse_other_outputs(outputs, self.cotangents.shape[1])
        if factory.verify and calls:
            refuse_exchanged_samples(outputs, calls)
        open_terms = self._open(block, calls)
        targets = [call.target for call in calls]
        last = len(self.cotangents) - 1
        gradients: Sequence[Tensor | None] = ()
        for k, cotangent in enumerate(self.cotangents if calls else ()):
            with attempted():
                gradients = torch.autograd.grad(
                    outputs,
                    targets,
                    cotangent.expand_as(outputs),
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
        self, x: Tensor, outputs: Tensor, calls: Sequence[Call], gradients: Sequence[Tensor | None]
    ) -> None:
        """Compare outputs, and the last cotangent's gradients, with those of parts of the batch."""
        problem, recheck = self.factory.problem, self.factory.problem.recheck
        if recheck is None:
            return
        recheck.refuse_not_finite(outputs, x, {"x": problem.x, "y": problem.y})
        parts = recheck.parts(x)
        if recheck.thorough or not calls or not problem.checks_gradients:
            compare(problem.model, x, outputs, parts)
            return
        for part in parts:
            alone, again = follow(problem.model, problem.parameters, x[part], problem.survey.routes)
            compare_part(problem.model, x, outputs, part, alone.detach())
            with attempted():
                targets = [call.target for call in again]
                cotangent = self.cotangents[-1].expand_as(alone)
                found = torch.autograd.grad(alone, targets, cotangent, allow_unused=True)
            bound = bounds_of(problem).alone
            for call, g, other, h in zip(calls, gradients, again, found, strict=True):
                if g is None or h is None:
                    continue
                dtype = torch.promote_types(g.dtype, torch.float32)  # norms overflow float16
                whole = call.of_samples(g, part).to(dtype)
                single = other.of_samples(h, slice(None)).to(dtype)
                same_shape = whole.shape == single.shape
                if same_shape and bool((whole - single).norm() > bound * single.norm()):
                    refuse_mixed_gradients(problem, x)
                    raise RoutesChangedError

    def add_by_general_route(self, block: slice, x: Tensor) -> None:
        """Take in a block of samples, x, by the general route."""
        problem, routes = self.factory.problem, self.factory.survey.routes
        if not routes.ruled and problem.recheck is not None and problem.recheck.thorough:
            outputs = forward(problem.model, feedable(x)).detach()
            self._compare(x, outputs, (), ())
        chosen = {name: problem.parameters[name] for name in routes.general}
        if routes.transformed:
            try:
                rows = transformed_gradients(problem.model, chosen, x, self.cotangents)
            except RoutesChangedError:
                rows = {}
            for name, gradients in rows.items():
                for k in range(gradients.shape[1]):
                    self.rows[name].place(name, block, k).copy_(gradients[:, k])
            if rows:
                return
        passes = plain_gradients(problem.model, chosen, x, self.cotangents, routes.reentrant)
        for i, k, gradients in passes:
            for name, gradient in gradients.items():
                self.rows[name].place(name, block, k)[i] = gradient

    def _form(self, block: slice, cotangents: slice, terms: Open, stacked: bool) -> None:
        """Form the gradients of a block, in terms that stack cotangents or in those that do not."""
        for name, formed in self.formed.items():
            if self.factory.survey.work.shapes[name].stacks(len(self.cotangents)) == stacked:
                with full_precision():
                    formed.form(block, cotangents, terms[name][1], self.factory.scratch)

    def _open(self, block: slice, calls: Sequence[Call]) -> Open:
        """Return the terms that take the factors of a block."""
        terms: dict[str, tuple[slice, OuterTerm]] = {}
        for name, (numbers, _) in self.assignment.outer.items():
            uses = [use for n in numbers if (use := calls[n].outer) is not None]
            if name in self.outer:
                self.outer[name].features.append(block, uses)
                terms[name] = block, self.outer[name]
            else:
                whole = slice(0, block.stop - block.start)
                shape, like = self.factory.survey.work.shapes[name], self.formed[name].rows
                held = len(self.cotangents) if shape.stacks(len(self.cotangents)) else 1
                allocate = partial(self.factory.scratch.take, name, like=like)
                term = OuterTerm(shape, whole.stop, held, allocate)
                term.features.append(whole, uses)
                terms[name] = whole, term
        return terms

    def _take_outer(
        self, terms: Open, k: int, calls: Sequence[Call], gradients: Sequence[Tensor | None]
    ) -> None:
        for name, (block, term) in terms.items():
            for use, number in enumerate(self.assignment.outer[name][0]):
                g, call = gradients[number], calls[number].outer
                place = term.place(use, block, k if term.cotangents.shape[1] > 1 else 0)
                if g is None or call is None:
                    place.zero_()
                else:
                    place.copy_(call.cotangent(g))

    def _take_rows(
        self, block: slice, k: int, calls: Sequence[Call], gradients: Sequence[Tensor | None]
    ) -> None:
        for number, names in self.row_uses.items():
            g = gradients[number]
            if g is not None:
                g = g.to(torch.promote_types(g.dtype, torch.float32))  # before sums over positions
                for role, rows in calls[number].rows(g, names).items():
                    self.rows[names[role]].place(names[role], block, k).add_(
                        rows.to(self.cotangents.device)
                    )

    def _build(self, samples: int, like: Tensor) -> None:
        factory, q = self.factory, len(self.cotangents)
        work = factory.survey.work
        for name, shape in work.shapes.items():
            if shape.formed:
                term = self.formed[name] = FormedTerm(shape, samples, q, factory.problem.full, like)
            else:
                term = self.outer[name] = OuterTerm(shape, samples, q, like.new_empty)
            self.terms.setdefault(factory.layer(name), []).append(term)
        sizes: dict[str, dict[str, int]] = {}
        for name, size in (*work.rows.items(), *work.general.items()):
            sizes.setdefault(factory.layer(name), {})[name] = size
        for layer, together in sizes.items():
            term = RowsTerm(together, samples, q, like)
            self.rows |= dict.fromkeys(together, term)
            self.terms.setdefault(layer, []).append(term)
