"""Survey a model on two samples: each parameter's route, and the memory that it takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn

from conescope.engine.compute.budget import Work
from conescope.engine.compute.shape import Shape
from conescope.engine.layers.call import Call, OuterCall, Role
from conescope.engine.tracing.forward import watched
from conescope.engine.tracing.routes import Routes, Trace, follow


def layer_of(parameter: str) -> str:
    """Return the module that owns a parameter; the parameter itself where that is the model."""
    return parameter.rpartition(".")[0] or parameter


def real_numbers(parameter: Tensor) -> int:
    """Return how many real numbers training moves: two for each complex one."""
    return parameter.numel() * (2 if parameter.is_complex() else 1)


@dataclass(frozen=True)
class Part:
    """Uses of a weight whose factors are joined along the positions.

    Attributes:
        calls: numbers of the calls.
        bias: the bias of the one call, if it joins in as a feature.
        pulled: whether the weight of a call is a tensor that was made of the parameter.
    """

    calls: tuple[int, ...]
    bias: str | None = None
    pulled: bool = False


@dataclass
class Assignment:
    """Which term takes which parameter of which call.

    Attributes:
        outer: weight → its uses, of one kind or, for tied weights, of several.
        rows: parameter → (a call's number, "weight" or "bias") for each of its calls.
        joined: biases that join a weight.
    """

    outer: dict[str, tuple[Part, ...]] = field(default_factory=dict)
    rows: dict[str, list[tuple[int, Role]]] = field(default_factory=dict)
    joined: set[str] = field(default_factory=set)


def assign(calls: Sequence[Call], idle: Collection[int]) -> Assignment:
    """Assign factors to weights whose calls have them and agree in shape; rows to the others.

    Args:
        calls: the recorded calls of one pass.
        idle: numbers of the calls that no output depends on.
    """
    uses: dict[str, list[tuple[int, Role]]] = {}
    for number, call in enumerate(calls):
        if number not in idle:
            for role, name in call.names.items():
                uses.setdefault(name, []).append((number, role))
    assignment = Assignment()
    for name, places in uses.items():
        kinds: dict[tuple[object, ...] | None, list[int]] = {}
        for number, role in places:
            kinds.setdefault(_factors_of(calls[number], role), []).append(number)
        if None in kinds or not _is_tied([calls[numbers[0]] for numbers in kinds.values()]):
            continue
        bias = calls[places[0][0]].bias
        joins = bias is not None and len(places) == len(uses[bias]) == 1
        if bias is not None and joins and layer_of(bias) == layer_of(name):
            assignment.joined.add(bias)
        else:
            bias = None
        assignment.outer[name] = tuple(
            Part(tuple(numbers), bias, any("weight" in calls[n].pulls for n in numbers))
            for numbers in kinds.values()
        )
    for name, places in uses.items():
        if name not in assignment.outer and name not in assignment.joined:
            assignment.rows[name] = places
    return assignment


def _is_tied(calls: Sequence[Call]) -> bool:
    """Return whether one call of each kind has the products of a tied weight with the others."""
    if len(calls) == 1:
        return True
    uses = [use for call in calls if (use := call.outer) is not None]
    whole = all(use.ties and "weight" not in use.pulls for use in uses)
    return whole and len(uses) == 2 and uses[0].order != uses[1].order


def _factors_of(call: Call, role: Role) -> tuple[object, ...] | None:
    return None if role == "bias" or call.outer is None else call.outer.joins


def rows_and_columns(p: Tensor) -> tuple[int, int]:
    """Return the sizes of the matrix of real numbers as which a parameter is projected."""
    rows = len(p) if p.dim() > 1 else p.numel()
    return rows, real_numbers(p) // rows


def features_first(call: OuterCall) -> bool:
    """Return whether the rows of a weight number features, or tokens, and its columns outputs."""
    return call.shape.sparse or call.order.startswith("a")


def has_factors_of(call: OuterCall, parameter: Tensor) -> bool:
    """Return whether the axes of the matrix of a parameter are the call's outputs and features."""
    sizes = call.shape.outputs, call.shape.inputs
    if "weight" in call.pulls or call.shape.groups > 1 or len(call.order) > len("oa"):
        return False
    return rows_and_columns(parameter) == (sizes[::-1] if features_first(call) else sizes)


@dataclass(frozen=True)
class Survey:
    """What a pass of two samples tells about passes of any number of samples.

    Attributes:
        routes: the route of each parameter.
        assignment: which term takes which parameter.
        work: what terms and passes hold for one sample.
        like: an empty tensor [0, c] of the outputs' dtype and device.
        checked: whether the routes have passed the self-check.
    """

    routes: Routes
    assignment: Assignment
    work: Work
    like: Tensor
    checked: bool = False

    def route(self, parameter: str) -> str:
        """Return "rule", "general" or, if no output depends on the parameter, "unused"."""
        if parameter in self.routes.general:
            return "general"
        taken = {*self.work.shapes, *self.work.rows, *self.assignment.joined}
        return "rule" if parameter in taken | self.routes.quiet_parameters else "unused"


def without_positions(known: Survey) -> Survey:
    """Return the same routes without products over pairs of positions, except for tokens."""
    shapes = {
        name: tuple(s if s.sparse or s.tied else replace(s, by_gradients=True) for s in shapes)
        for name, shapes in known.work.shapes.items()
    }
    return replace(known, work=replace(known.work, shapes=shapes))


def with_formed_gradients(known: Survey, uniform: Collection[str]) -> Survey:
    """Return the same routes for gradients of which every entry is multiplied by its own number.

    A weight keeps its outer products, of which gradients are formed, or which are tokens; biases
    leave it. Weights whose factors tell too little of their gradients become rows.

    Args:
        known: a survey.
        uniform: the parameters of which all entries are multiplied by the same number.
    """
    assignment = Assignment(rows={**known.assignment.rows})
    shapes: dict[str, tuple[Shape, ...]] = {}
    rows = {**known.work.rows}
    for name, parts in known.assignment.outer.items():
        first, (bias, own) = parts[0], (parts[0].bias, known.work.shapes[name])
        if bias is not None:
            parts = (replace(first, bias=None),)
            own = (replace(own[0], inputs=own[0].inputs - 1),)
            assignment.rows[bias] = [(first.calls[0], "bias")]
            rows[bias] = own[0].groups * own[0].outputs
        if name not in uniform and (len(parts) > 1 or first.pulled):
            assignment.rows[name] = [(n, "weight") for part in parts for n in part.calls]
            rows[name] = own[0].size
            continue
        if name not in uniform:
            own = (replace(own[0], by_gradients=True, convolved=0),)
        assignment.outer[name], shapes[name] = parts, own
    work = replace(known.work, shapes=shapes, rows=rows)
    return replace(known, assignment=assignment, work=work)


def with_all_positions(
    known: Survey, model: nn.Module, parameters: Mapping[str, nn.Parameter], pair: Tensor
) -> Survey:
    """Return the survey of the same routes, in which gradients may reach every position."""
    routes = replace(known.routes, reached=(None,) * len(known.routes.reached))
    return survey_pair(model, parameters, pair, routes, known.like)


def in_parts(known: Survey, room: int) -> list[Survey]:
    """Divide a survey if the gradients of its parameters without a rule exceed some elements."""
    sizes = known.work.general
    if sum(sizes.values()) <= room:
        return [known]
    groups: list[list[str]] = [[]]
    for name, size in sizes.items():
        if groups[-1] and sum(sizes[held] for held in groups[-1]) + size > room:
            groups.append([])
        groups[-1].append(name)
    ruled = [_without_general(known)] if known.routes.ruled else []
    return ruled + [_only_general(known, group) for group in groups]


def _only_general(known: Survey, general: Sequence[str]) -> Survey:
    """Return the part of a survey that covers some parameters of the general route."""
    routes = Routes(
        (), tuple(general), transformed=known.routes.transformed, reentrant=known.routes.reentrant
    )
    sizes = {name: known.work.general[name] for name in general}
    work = replace(known.work, kept=0, shapes={}, rows={}, general=sizes)
    return replace(known, routes=routes, assignment=Assignment(), work=work)


def _without_general(known: Survey) -> Survey:
    """Return the part of a survey that covers the parameters which rules take."""
    routes = replace(known.routes, general=())
    return replace(known, routes=routes, work=replace(known.work, general={}))


def survey_pair(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    pair: Tensor,
    routes: Routes,
    like: Tensor,
    trace: Trace | None = None,
) -> Survey:
    """Survey a model on two samples, by given routes.

    Args:
        model: the network.
        parameters: those whose kernel is wanted.
        pair: two samples.
        routes: the routes.
        like: an empty tensor [0, c] of the outputs' dtype and device.
        trace: a forward pass of the pair that keeps to the routes; None to run one.

    Raises:
        RoutesChangedError: if the model does not keep to the routes.
    """
    if trace is None:
        trace = Trace(*watched(partial(follow, model, parameters, pair, routes)))
    outputs, calls = trace.outputs, trace.calls
    sources = {call.source.untyped_storage().data_ptr(): call.source for call in calls}
    stored = {**trace.saved, **{k: t.untyped_storage().nbytes() for k, t in sources.items()}}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    activations = sum(size for place, size in stored.items() if place not in weights)
    activations //= torch.promote_types(outputs.dtype, torch.float32).itemsize
    # outputs that are a part of a larger tensor keep all of it, and so does their gradient
    whole = max(outputs.numel(), outputs.untyped_storage().nbytes() // outputs.element_size())
    passed = (c.cotangent_elements for n, c in enumerate(calls) if n not in routes.unused)
    assignment = assign(calls, routes.idle)
    shapes: dict[str, tuple[Shape, ...]] = {}
    kept = 0
    for name, parts in assignment.outer.items():
        shapes[name] = tuple(
            _shape(calls, part, len(parts) > 1, parameters[name]) for part in parts
        )
        for part, shape in zip(parts, shapes[name], strict=True):
            if not shape.formed:
                kept += sum(use.kept for use in _uses(calls, part))
    work = Work(
        passing=activations // 2 + whole + sum(passed),
        width=like.shape[1],
        kept=kept,
        shapes=shapes,
        rows={name: real_numbers(parameters[name]) for name in assignment.rows},
        general={name: real_numbers(parameters[name]) for name in routes.general},
        transformed=routes.transformed,
    )
    return Survey(routes, assignment, work, like)


def _uses(calls: Sequence[Call], part: Part) -> list[OuterCall]:
    return [use for number in part.calls if (use := calls[number].outer) is not None]


def _shape(calls: Sequence[Call], part: Part, tied: bool, weight: Tensor) -> Shape:
    """Return the shape of all uses together."""
    uses = _uses(calls, part)
    shapes = [use.shape for use in uses]
    return replace(
        shapes[0],
        inputs=shapes[0].inputs + (part.bias is not None),
        positions=sum(shape.positions for shape in shapes),
        convolved=min(shape.convolved for shape in shapes),
        transposed=uses[0].order == "ao",
        tied=tied,
        rearranged=not all(has_factors_of(use, weight) for use in uses),
    )
