"""Add up the sketches of per-sample gradients: one forward pass of a block, r backward passes."""

from __future__ import annotations

import torch
from torch import Tensor

from conescope.engine.backward import BlockPass, compare_outputs
from conescope.engine.compute.sketch import POSITIONS, Axis, Sketch
from conescope.engine.general import plain_gradients, transformed_gradients
from conescope.engine.layers.call import Call, OuterCall
from conescope.engine.layers.convolution import ConvCall
from conescope.engine.problem import Problem
from conescope.engine.tracing.forward import (
    RoutesChangedError,
)
from conescope.engine.tracing.survey import features_first, has_factors_of, rows_and_columns

MOST_FORMED = 2**22
"""Gradients of outer products of more numbers are never formed."""
_ADDING = 4
"""Adding a number to a sketch takes as long as so many operations of a product of matrices."""


def add_sketches(problem: Problem, sketch: Sketch, x: Tensor, out: Tensor, verify: bool) -> None:
    """Add the sketches of all gradients of a block of samples.

    Args:
        problem: what is projected.
        sketch: the projection.
        x: the block, [b, …].
        out: sketches [b, dim], unscaled.
        verify: see `BlockPass.backward`.

    Raises:
        RoutesChangedError: if the model does not keep to the routes.
        ModelError: if samples depend on each other, or no route follows the model.
    """
    routes = problem.survey.routes
    if routes.ruled:
        _add_by_rules(problem, sketch, x, out, verify)
    else:
        compare_outputs(problem, x)
    if routes.general:
        _add_by_general_route(problem, sketch, x, out)


def _add_by_rules(problem: Problem, sketch: Sketch, x: Tensor, out: Tensor, verify: bool) -> None:
    """Add the sketches of the parameters that layer rules take, for a block of samples x."""
    done, draws = BlockPass(problem, x), len(problem.cotangents)
    for k, gradients in done.backward(problem.cotangents.part(0, draws), verify):
        blocks = sketch.part(k if draws > 1 else None)
        for number, call in enumerate(done.calls):
            if (g := gradients[number]) is not None:
                _add_call(problem, sketch, out, call, g, blocks)
                del g
        del gradients
    done.compare()


def _add_call(
    problem: Problem, sketch: Sketch, out: Tensor, call: Call, g: Tensor, blocks: slice
) -> None:
    """Add the sketches of the parameters of one call, from the gradient at its target."""
    names = call.names
    outer = call.outer
    if outer is not None and "weight" in names and "weight" not in outer.pulls:
        weight = names["weight"]
        shape = rows_and_columns(problem.parameters[weight])
        if has_factors_of(outer, problem.parameters[weight]) and _by_factors(outer, sketch):
            _add_factors(sketch, out, outer, g, sketch.axes(weight, *shape), blocks)
            del names["weight"]
        elif outer.shape.convolved:
            formed = outer.gradients(outer.cotangent(g))
            sketch.add_rows(out, weight, formed.view(len(formed), *shape), blocks)
            del names["weight"]
    for role, rows in call.rows(g, names).items():
        shape = rows_and_columns(problem.parameters[names[role]])
        sketch.add_rows(out, names[role], rows.view(len(rows), *shape), blocks)


def _by_factors(call: OuterCall, sketch: Sketch) -> bool:
    """Return whether sketches of the factors are cheaper than forming the gradient first."""
    shape = call.shape
    if shape.sparse or shape.size > MOST_FORMED:
        return True
    short, long = sorted((shape.outputs, shape.inputs))
    adding = _ADDING * sketch.blocks
    product = 2 * sketch.blocks * sketch.width**2
    factors = shape.positions * (product + adding * (short + long))
    formed = 2 * shape.positions * shape.size + adding * short * (long + 2 * sketch.width)
    return factors < formed


def _add_factors(
    sketch: Sketch, out: Tensor, call: OuterCall, g: Tensor, axes: tuple[Axis, Axis], blocks: slice
) -> None:
    """Add the sketches of a weight's gradients, a few samples at a time, from the two factors."""
    shape = call.shape
    cotangent = call.cotangent(g)[:, 0]
    step = max(1, POSITIONS // shape.positions)
    outputs, inputs = axes[::-1] if features_first(call) else axes
    for start in range(0, len(cotangent), step):
        some = cotangent[start : start + step].permute(1, 0, 2)
        samples = some.shape[1]
        if shape.sparse:
            features = g.new_empty(samples, 1, shape.positions, 1, dtype=torch.int64)
            call.write_features(features, start, start + samples)
            features = features[:, 0, :, 0]
        else:
            features = sketch.like.new_empty(shape.inputs, samples, shape.positions)
            call.write_features(features.permute(1, 2, 0)[:, None], start, start + samples)
            if isinstance(call, ConvCall):
                channels = call.weight_shape[1]
                features = features.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1)
        some = some.to(sketch.like.dtype)
        sketch.add_outer(out[start : start + step], (outputs, some), (inputs, features), blocks)


def _add_by_general_route(problem: Problem, sketch: Sketch, x: Tensor, out: Tensor) -> None:
    """Add the sketches of the parameters without a rule, for a block of samples x."""
    routes = problem.survey.routes
    chosen = {name: problem.parameters[name] for name in routes.general}
    draws = len(problem.cotangents)

    def add(place: Tensor, name: str, rows: Tensor, k: int) -> None:
        shape = rows_and_columns(chosen[name])
        blocks = sketch.part(k if draws > 1 else None)
        sketch.add_rows(place, name, rows.reshape(len(rows), *shape), blocks)

    if routes.transformed:
        found = torch.zeros_like(out)
        try:
            for k in range(draws):
                cotangent = problem.cotangents.part(k, k + 1)
                rows = transformed_gradients(problem.model, chosen, x, cotangent)
                for name in chosen:
                    add(found, name, rows.pop(name)[:, 0], k)
        except RoutesChangedError:
            pass  # plain autograd follows
        else:
            out += found
            return
    cotangents = problem.cotangents.part(0, draws)
    passes = plain_gradients(problem.model, chosen, x, cotangents, routes.reentrant)
    for i, k, gradients in passes:
        for name, gradient in gradients.items():
            add(out[i : i + 1], name, gradient[None], k)
