"""A survey of a model on two samples: routes, work and memory of each parameter, known ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from conescope.engine.assignment import Assignment, assign
from conescope.engine.attempt import RoutesChangedError
from conescope.engine.calls import Call, OuterCall
from conescope.engine.convolutions import ConvCall
from conescope.engine.norms import BatchNormCall
from conescope.engine.routes import (
    Routes,
    follow,
    with_general_way,
)


@dataclass(frozen=True)
class Shape:
    """A weight with two factors: groups g, outputs o and features a of a group, positions T.

    `sparse` features are tokens. Up to `convolved` cotangents of a block give their gradients
    faster by convolutions, one at a time, than by products. With `by_gradients`, products are made
    of gradients even where pairs of positions are cheaper.
    """

    groups: int
    outputs: int
    inputs: int
    positions: int
    sparse: bool = False
    convolved: int = 0
    by_gradients: bool = False

    @property
    def size(self) -> int:
        """Elements of the per-sample gradient of one cotangent."""
        return self.groups * self.outputs * self.inputs

    @property
    def cotangent(self) -> int:
        """Elements of a sample's cotangent."""
        return self.groups * self.outputs * self.positions

    @property
    def formed(self) -> bool:
        """Whether the gradient takes about as little memory as its factors, or less."""
        return not self.sparse and self.inputs <= 1.0 * self.positions

    def stacks(self, directions: int) -> bool:
        """Whether so many cotangents of a block wait for each other, to be multiplied together."""
        return not self.formed or directions > self.convolved


@dataclass(frozen=True)
class Survey:
    """What two samples tell about any number of them. All sizes are elements for one sample.

    Attributes:
        routes: the way of each parameter.
        assignment: which term takes which parameter.
        shapes: weight → its shape, for those with two factors.
        rows: parameter → elements of its row, for all others.
        kept: what the factors keep, whatever the number of cotangents.
        passing: what a forward pass keeps, with one backward pass's cotangents.
        like: an empty tensor [0, c] of the outputs' dtype and device.
        checked: whether the routes have stood the self-check.
    """

    routes: Routes
    assignment: Assignment
    shapes: Mapping[str, Shape]
    rows: Mapping[str, int]
    kept: int
    passing: int
    like: Tensor
    checked: bool = False

    def route(self, parameter: str) -> str:
        """How a parameter goes: "rule", "general" or "unused", if no output depends on it."""
        if parameter in self.routes.general:
            return "general"
        taken = parameter in self.shapes or parameter in self.rows
        return "rule" if taken or parameter in self.assignment.joined else "unused"

    @property
    def factors(self) -> int:
        """Elements that stay for each cotangent until the products are made."""
        return sum(self.rows.values()) + sum(
            shape.size if shape.formed else shape.cotangent for shape in self.shapes.values()
        )

    @property
    def row_in_the_making(self) -> int:
        """Elements of the largest row that a rule forms for a sample before it is put in place."""
        general = set(self.routes.general)
        return max((size for name, size in self.rows.items() if name not in general), default=0)

    def stacked(self, directions: int) -> int:
        """Elements that a block holds of so many cotangents until its gradients are formed."""
        return sum(
            shape.cotangent * (directions if shape.stacks(directions) else 1)
            for shape in self.shapes.values()
            if shape.formed
        )

    @property
    def general(self) -> int:
        """Elements that transforms hold for each sample and cotangent, beside its rows."""
        if not self.routes.general or not self.routes.transformed:
            return 0
        return 2 * self.passing + 2 * sum(self.rows[name] for name in self.routes.general)

    @property
    def fixed(self) -> int:
        """Elements that plain autograd holds, a sample and a cotangent at a time."""
        if not self.routes.general or self.routes.transformed:
            return 0
        return 2 * self.passing + sum(self.rows[name] for name in self.routes.general)


def without_rules(
    known: Survey, model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor
) -> Survey:
    """The same model with every parameter on the general route."""
    pair = x[:2] if len(x) > 1 else x[[0, 0]]
    general = Routes((), tuple(parameters), provisional=known.routes.provisional)
    routes = with_general_way(general, model, parameters, pair)
    rows = {name: real_numbers(p) for name, p in parameters.items()}
    return Survey(routes, Assignment(), {}, rows, 0, known.passing, known.like)


def without_positions(known: Survey) -> Survey:
    """The same routes, with products of gradients wherever there are two factors."""
    shapes = {
        name: shape if shape.sparse else replace(shape, by_gradients=True)
        for name, shape in known.shapes.items()
    }
    return replace(known, shapes=shapes)


def only(known: Survey, general: Sequence[str]) -> Survey:
    """The part of a survey that is of some parameters of the general route."""
    routes = Routes(
        (), tuple(general), transformed=known.routes.transformed, reentrant=known.routes.reentrant
    )
    rows = {name: known.rows[name] for name in general}
    return Survey(routes, Assignment(), {}, rows, 0, known.passing, known.like, known.checked)


def without_general(known: Survey) -> Survey:
    """The part of a survey that is of the parameters which rules take."""
    rows = {n: size for n, size in known.rows.items() if n not in known.routes.general}
    return replace(known, routes=replace(known.routes, general=()), rows=rows)


def real_numbers(parameter: Tensor) -> int:
    """How many real numbers training moves: two for each complex one."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


def survey_pair(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    pair: Tensor,
    routes: Routes,
    like: Tensor,
) -> Survey:
    """The survey of two samples, by given routes.

    Raises:
        RoutesChangedError: if the model does not keep to the routes.
    """
    stored: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            outputs, calls = follow(model, parameters, pair, routes)
    except RoutesChangedError:
        # transforms of torch.func refuse the hooks: what they save goes uncounted
        outputs, calls = follow(model, parameters, pair, routes)
    for call in calls:
        note(call.source)
    activations = sum(size for place, size in stored.items() if place not in weights)
    activations //= outputs.element_size()
    cotangents = sum(
        cotangent_size(call, parameters)
        for number, call in enumerate(calls)
        if number not in routes.idle
    )
    assignment = assign(calls, routes.idle)
    shapes = {}
    kept = 0
    for name, (numbers, bias) in assignment.outer.items():
        uses = [call for n in numbers if isinstance(call := calls[n], OuterCall)]
        g, o, a = uses[0].shape
        positions = sum(call.positions for call in uses)
        convolved = min(call.convolved if isinstance(call, ConvCall) else 0 for call in uses)
        shapes[name] = Shape(g, o, a + bias, positions, uses[0].sparse, convolved)
        if not shapes[name].formed:
            kept += sum(call.source.numel() for call in uses) // 2
    rows = {name: real_numbers(parameters[name]) for name in (*assignment.rows, *routes.general)}
    passing = (activations + outputs.numel()) // 2 + cotangents
    return Survey(routes, assignment, shapes, rows, kept, passing, like)


def cotangent_size(call: Call, parameters: Mapping[str, Tensor]) -> int:
    """Elements of a call's output for one sample."""
    if isinstance(call, OuterCall):
        g, o, _ = call.shape
        return g * o * call.positions
    if isinstance(call, BatchNormCall):
        return call.copies.numel() // call.samples
    elements = call.source.numel() // call.samples
    if call.weight is None or call.source.dim() < 3:
        return elements
    weight = parameters[call.weight]
    return max(elements, elements * weight[0].numel() // math.prod(weight.shape[2:] or (1,)))
