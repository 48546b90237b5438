"""A survey of a model on two samples: routes, work and memory of each parameter, known ahead."""

from __future__ import annotations

import math
import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from conescope.entk.assignment import Assignment, assign
from conescope.entk.calls import BatchNormCall, Call, OuterCall
from conescope.entk.convolutions import ConvCall
from conescope.entk.routes import (
    Routes,
    RoutesChangedError,
    find_routes,
    follow,
    only_requires_grad,
)
from conescope.errors import ModelError


@dataclass(frozen=True)
class Shape:
    """A weight with two factors: groups g, outputs o and features a of a group, positions T.

    `sparse` features are tokens. Up to `convolved` cotangents of a block give their gradients
    faster by convolutions, one at a time, than by products.
    """

    groups: int
    outputs: int
    inputs: int
    positions: int
    sparse: bool = False
    convolved: int = 0

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
        checked: whether the routes have stood the self-check.
    """

    routes: Routes
    assignment: Assignment
    shapes: Mapping[str, Shape]
    rows: Mapping[str, int]
    kept: int
    passing: int
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

    def stacked(self, directions: int) -> int:
        """Elements that a block holds of so many cotangents until its gradients are formed."""
        return sum(
            shape.cotangent * (directions if shape.stacks(directions) else 1)
            for shape in self.shapes.values()
            if shape.formed
        )

    @property
    def general(self) -> int:
        """Elements that the general route holds for each cotangent, beside its rows."""
        if not self.routes.general:
            return 0
        return 2 * self.passing + 2 * sum(self.rows[name] for name in self.routes.general)


@dataclass
class _Memo:
    key: Hashable = None
    survey: Survey | None = field(default=None)


_SURVEYS: weakref.WeakKeyDictionary[nn.Module, _Memo] = weakref.WeakKeyDictionary()


def survey_model(model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor) -> Survey:
    """The survey of a model; remembered as long as the model keeps its modules and modes."""
    memo = _SURVEYS.setdefault(model, _Memo())
    key = (
        tuple((name, id(module), module.training) for name, module in model.named_modules()),
        tuple((name, id(p), p.shape) for name, p in parameters.items()),
        (x.shape[1:], x.dtype, x.device, len(x) > 1),
    )
    if memo.survey is None or memo.key != key:
        pair = x[:2] if len(x) > 1 else x[[0, 0]]
        with only_requires_grad(model, parameters):
            routes = find_routes(model, parameters, pair)
        try:
            survey = _survey(model, parameters, pair, routes)
        except RoutesChangedError:
            survey = _survey(model, parameters, pair, Routes((), tuple(parameters)))
        if survey.routes.provisional:
            return survey
        memo.key, memo.survey = key, survey
    return memo.survey


def forget(model: nn.Module) -> None:
    """Drop the survey of a model that has changed its way."""
    _SURVEYS.pop(model, None)


def remember(model: nn.Module, known: Survey) -> None:
    """Put a survey that has been checked in the place of the one remembered, if it may be kept."""
    if not known.routes.provisional:
        _SURVEYS[model].survey = known


def without_rules(known: Survey, parameters: Mapping[str, nn.Parameter]) -> Survey:
    """The same model with every parameter on the general route."""
    rows = {name: p.numel() for name, p in parameters.items()}
    routes = Routes((), tuple(parameters), provisional=known.routes.provisional)
    return Survey(routes, Assignment(), {}, rows, 0, known.passing)


def _survey(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], pair: Tensor, routes: Routes
) -> Survey:
    stored: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    with only_requires_grad(model, {}):
        try:
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                outputs, calls = follow(model, parameters, pair, routes)
        except ModelError:
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
    rows = {name: parameters[name].numel() for name in (*assignment.rows, *routes.general)}
    passing = (activations + outputs.numel()) // 2 + cotangents
    return Survey(routes, assignment, shapes, rows, kept, passing)


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
