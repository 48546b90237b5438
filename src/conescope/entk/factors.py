"""From a model and samples to the terms of its kernel: one forward pass, q backward passes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from conescope.entk.calls import Call, OuterCall
from conescope.entk.general import per_sample_gradients
from conescope.entk.routes import Routes, follow, only_requires_grad
from conescope.entk.products import Scratch
from conescope.entk.terms import Features, FormedTerm, OuterTerm, RowsTerm

Term = FormedTerm | OuterTerm | RowsTerm


def layer_of(parameter: str) -> str:
    """The module that owns a parameter; the parameter itself where that is the model."""
    return parameter.rpartition(".")[0] or parameter


@dataclass
class Assignment:
    """Which term takes which parameter of which call.

    Attributes:
        outer: weight → (its calls' numbers, whether the bias of the one call joins in).
        rows: parameter → (its calls' numbers, "weight" or "bias" in each).
    """

    outer: dict[str, tuple[list[int], bool]] = field(default_factory=dict)
    rows: dict[str, list[tuple[int, str]]] = field(default_factory=dict)


def assign(calls: Sequence[Call]) -> Assignment:
    """Outer terms for weights whose calls have two factors of one shape; rows for the rest."""
    uses: dict[str, list[tuple[int, str]]] = {}
    for number, call in enumerate(calls):
        for role, name in (("weight", call.weight), ("bias", call.bias)):
            if name is not None:
                uses.setdefault(name, []).append((number, role))
    assignment = Assignment()
    joined: set[str] = set()
    for name, places in uses.items():
        shapes = {_outer_shape(calls[number], role) for number, role in places}
        if len(shapes) > 1 or None in shapes:
            continue
        call = calls[places[0][0]]
        bias = call.bias
        joins = (
            bias is not None
            and len(places) == 1
            and len(uses[bias]) == 1
            and layer_of(bias) == layer_of(name)
        )
        if joins and bias is not None:
            joined.add(bias)
        assignment.outer[name] = [number for number, _ in places], joins
    assignment.rows = {
        name: places
        for name, places in uses.items()
        if name not in assignment.outer and name not in joined
    }
    return assignment


def _outer_shape(call: Call, role: str) -> tuple[int, ...] | None:
    if role == "bias" or not isinstance(call, OuterCall):
        return None
    return (*call.shape, call.sparse)


class Factory:
    """Makes the terms of any samples for any directions.

    Args:
        model: the network.
        parameters: those whose kernel is wanted.
        routes: how each of them goes.
        by_layer: whether terms of different layers have to stay apart.
        block: samples of one forward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        routes: Routes,
        by_layer: bool,
        block: int,
        scratch: Scratch,
    ) -> None:
        self.model = model
        self.parameters = parameters
        self.routes = routes
        self.by_layer = by_layer
        self.block = block
        self.scratch = scratch

    def __call__(self, x: Tensor, directions: Tensor) -> dict[str, list[Term]]:
        """Layer → terms of the samples x; all under "" unless by layer.

        Raises:
            RoutesChangedError: if the model does not keep to the routes.
        """
        terms: dict[str, list[Term]] = {}
        if self.routes.ruled:
            with only_requires_grad(self.model, {}):
                collector = _Collector(self, len(x), directions)
                for start in range(0, len(x), self.block):
                    collector.absorb(slice(start, min(len(x), start + self.block)), x)
                terms = collector.terms
        if self.routes.general:
            chosen = {name: self.parameters[name] for name in self.routes.general}
            with only_requires_grad(self.model, chosen):
                gradients = per_sample_gradients(self.model, chosen, x, directions)
            for name, rows in gradients.items():
                term = RowsTerm({name: rows.shape[2]}, len(x), len(directions), directions)
                term.rows = rows
                terms.setdefault(self.layer(name), []).append(term)
        return terms

    def layer(self, parameter: str) -> str:
        """The layer under which a parameter's term is kept."""
        return layer_of(parameter) if self.by_layer else ""


class _Collector:
    """Terms in the making, filled block by block."""

    def __init__(self, factory: Factory, samples: int, directions: Tensor) -> None:
        self.factory = factory
        self.samples = samples
        self.directions = directions
        self.terms: dict[str, list[Term]] = {}
        self.assignment = Assignment()
        self.outer: dict[str, OuterTerm] = {}
        self.formed: dict[str, FormedTerm] = {}
        self.rows: dict[str, RowsTerm] = {}

    def absorb(self, block: slice, x: Tensor) -> None:
        """Take in a block of the samples x."""
        factory = self.factory
        outputs, calls = follow(factory.model, factory.parameters, x[block], factory.routes)
        if not self.terms:
            self.assignment = assign(calls)
            self._build(calls)
        open_terms = self._open(block, calls)
        edges = [call.edge for call in calls]
        last = len(self.directions) - 1
        for k, direction in enumerate(self.directions):
            gradients = torch.autograd.grad(
                outputs,
                edges,
                direction.expand_as(outputs),
                retain_graph=k < last,
                allow_unused=True,
            )
            self._take_outer(open_terms, k, calls, gradients)
            self._take_rows(block, k, calls, gradients)
        for name, term in self.formed.items():
            term.form(block, open_terms[name][1], factory.scratch)

    def _open(
        self, block: slice, calls: Sequence[Call]
    ) -> dict[str, tuple[slice, OuterTerm]]:
        """Weight → (the block's place in it, the term that takes the block's factors)."""
        terms = {}
        for name, (numbers, bias) in self.assignment.outer.items():
            uses = _outer_calls(calls, numbers)
            if name in self.outer:
                self.outer[name].features.append(block, uses)
                terms[name] = block, self.outer[name]
            else:
                whole = slice(0, block.stop - block.start)

                def allocate(shape: tuple[int, ...], name: str = name) -> Tensor:
                    return self.factory.scratch.take(name, shape, self.directions)

                term = OuterTerm(uses, bias, whole.stop, len(self.directions), allocate)
                term.features.append(whole, uses)
                terms[name] = whole, term
        return terms

    def _take_outer(
        self,
        terms: Mapping[str, tuple[slice, OuterTerm]],
        k: int,
        calls: Sequence[Call],
        gradients: Sequence[Tensor | None],
    ) -> None:
        for name, (block, term) in terms.items():
            for use, number in enumerate(self.assignment.outer[name][0]):
                g, call = gradients[number], calls[number]
                place = term.place(use, block, k)
                if g is None or not isinstance(call, OuterCall):
                    place.zero_()
                else:
                    place.copy_(call.cotangent(g))

    def _take_rows(
        self, block: slice, k: int, calls: Sequence[Call], gradients: Sequence[Tensor | None]
    ) -> None:
        for name, places in self.assignment.rows.items():
            place = self.rows[name].place(name, block, k).zero_()
            for number, role in places:
                g, call = gradients[number], calls[number]
                if g is not None:
                    place += call.weight_rows(g) if role == "weight" else call.bias_rows(g)

    def _build(self, calls: Sequence[Call]) -> None:
        factory, q = self.factory, len(self.directions)
        for name, (numbers, bias) in self.assignment.outer.items():
            uses = _outer_calls(calls, numbers)
            features = Features(uses, bias)
            if uses[0].sparse or features.width > _COMPACT * features.positions:
                term = OuterTerm(uses, bias, self.samples, q, self.directions.new_empty)
                self.outer[name] = term
            else:
                term = FormedTerm(self.samples, q, features, self.directions)
                self.formed[name] = term
            self.terms.setdefault(factory.layer(name), []).append(term)
        sizes: dict[str, dict[str, int]] = {}
        for name in self.assignment.rows:
            size = factory.parameters[name].numel()
            sizes.setdefault(factory.layer(name), {})[name] = size
        for layer, together in sizes.items():
            term = RowsTerm(together, self.samples, q, self.directions)
            self.rows |= dict.fromkeys(together, term)
            self.terms.setdefault(layer, []).append(term)


_COMPACT = 1.25


def _outer_calls(calls: Sequence[Call], numbers: Sequence[int]) -> list[OuterCall]:
    return [call for n in numbers if isinstance(call := calls[n], OuterCall)]
