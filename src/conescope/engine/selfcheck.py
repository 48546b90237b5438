"""The self-check: compare a small kernel with plain autograd before a large one is computed.

Two samples and one random cotangent v suffice. With a weight w of the second sample, the gradient
of v·f(x_0) + w v·f(x_1) has the squared norm K_00 + 2 w K_01 + w² K_11, so that one backward pass
checks the kernel of each layer. Gradients that plain autograd takes in the very pass that the rules
record differ from theirs by nothing but the order of sums, so they are held to a narrow bound,
layer by layer. Gradients of each sample alone come from other passes, in which rounding may flip a
ReLU, so the bound between the two is wide. Where all parameters have rules and there are samples to
tell apart, `BlockPass.compare` compares those instead, at the calls and for every sample, with a
weight of its own for each; then autograd's gradients come from the pass that makes the kernel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import Tensor, nn

from conescope.engine.arguments import Cotangents
from conescope.engine.compute.budget import default_memory
from conescope.engine.compute.shape import Pairing
from conescope.engine.general import (
    Gradients,
    autograd_gradients,
    plain_gradients,
    square_of_difference,
    squared_norm,
)
from conescope.engine.independence import compare, rounding_of
from conescope.engine.mixing import describe_gradient_mixing
from conescope.engine.problem import Problem
from conescope.engine.tracing.forward import RoutesChangedError, attempted, feedable, forward
from conescope.engine.tracing.recorder import record
from conescope.engine.tracing.survey import Survey, layer_of, real_numbers
from conescope.errors import ModelError

_FEW = 2**20
"""Parameters of so few numbers in all are checked in one go, whatever the budget."""
_MOST = 16
"""Samples whose gradients are compared with those of each alone."""
_TOGETHER = 2.5
"""Gradients of all parameters of a group held at once: those of two samples alone, or their sum and
that of a batch; and what the allocator cannot hand out again at once."""
_COMPUTED = 3
"""Gradients of one parameter held beside those: one that is computed, three of a tied weight."""
_WEIGHT = 0.5
"""w, of the second sample; a power of two, so that multiplying by it rounds nothing."""


@dataclass(frozen=True)
class Bounds:
    """The largest differences that are allowed.

    Attributes:
        total: of the whole kernel, relative to its diagonal.
        layer: of the kernel of a layer, relative to its own diagonal.
        least: what is added to that, relative to the diagonal of the whole kernel.
        alone: of gradients of samples alone from those in a batch, relative to their norm.
    """

    total: float
    layer: float
    least: float
    alone: float


_BOUNDS = {
    torch.float64: Bounds(total=1e-11, layer=1e-9, least=1e-11, alone=1e-5),
    torch.float32: Bounds(total=2e-6, layer=1e-4, least=2e-6, alone=0.05),
    torch.float16: Bounds(total=2e-3, layer=1e-2, least=1e-4, alone=0.3),
    torch.bfloat16: Bounds(total=1e-2, layer=5e-2, least=1e-4, alone=0.3),
}
"""By the coarsest dtype. Autograd rounds gradients to their dtype, which rules do not: in half
precision a kernel differs by up to that rounding, however small the layer's share of it is."""


def sample_problem(problem: Problem, survey: Survey) -> Problem:
    """Return the problem for two of its samples and one cotangent, by the routes of a survey.

    Samples and cotangent are drawn at random; the draw is the same each time, and so is the kernel.
    """
    n = len(problem.x)
    generator = torch.Generator().manual_seed(n)
    chosen = (
        torch.randperm(n, generator=generator, device="cpu")[:2]
        if n > 1
        else torch.zeros(2, dtype=torch.int64, device="cpu")
    )
    cotangents = problem.cotangents
    return dataclasses.replace(
        problem,
        x=problem.x[chosen.to(problem.x.device)],
        y=None,
        pairing=Pairing.SUMMED,
        cotangents=Cotangents.normal(cotangents.width, n, cotangents.like),
        survey=survey,
        recheck=None,
    )


def agrees_with_autograd(
    problem: Problem, layers: Mapping[str, Tensor], budget: int, alone_follows: bool = False
) -> bool:
    """Return whether the kernels by layer of a `sample_problem` are those of plain autograd.

    Args:
        problem: two samples and one cotangent.
        layers: layer → kernel, [1, 2, 2].
        budget: bytes.
        alone_follows: whether gradients of samples alone will be compared with those in a batch
            when the whole kernel is computed, so that only those of the general route are here.

    Raises:
        ModelError: if a sample's gradients depend on its batch, whatever the route.
    """
    bounds = bounds_of(problem)
    expected = dict.fromkeys(layers, 0.0)
    apart = norm = 0.0
    general, reentrant = set(problem.survey.routes.general), problem.survey.routes.reentrant
    for group in _groups(problem, budget):
        compared = general or not alone_follows
        alone = _alone(problem, group, reentrant) if compared else {}
        try:
            batch = _in_batch(problem, group)
        except RoutesChangedError:
            if problem.survey.routes.ruled:
                raise
            batch = None  # only gradients of samples alone are used then
        for name in list(alone.keys() | (batch or {}).keys()):
            found = None if batch is None else _scaled(problem, name, batch.pop(name, None))
            single = _scaled(problem, name, alone.pop(name, None))
            norm += 0.0 if single is None else squared_norm(single)
            kept = single if name in general else found
            expected[layer_of(name)] += 0.0 if kept is None else squared_norm(kept)
            if compared and batch is not None:
                apart += square_of_difference(found, single)
    if apart > bounds.alone**2 * norm:
        if problem.survey.routes.ruled:
            return False
        _refuse_mixing(problem, problem.x, bounds)
    return near(problem, layers, expected, _WEIGHT)


def _scaled(problem: Problem, name: str, gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else problem.scaled(name, gradient)


def _alone(problem: Problem, group: Mapping[str, nn.Parameter], reentrant: bool) -> Gradients:
    """Return the weighted sum of the gradients of each sample alone, name → [p]."""
    total: Gradients = {}
    passes = plain_gradients(
        problem.model, group, problem.x, problem.cotangents.part(0, 1), reentrant
    )
    for sample, _, gradients in passes:
        for name in list(gradients):
            gradient = gradients.pop(name)
            if sample == 1:
                gradient = gradient * _WEIGHT
            # nothing is written to: gradients of two parameters may be the same tensor
            total[name] = gradient if name not in total else total[name] + gradient
    return total


def refuse_mixed_gradients(problem: Problem, x: Tensor) -> None:
    """Raise `ModelError` if outputs or gradients of samples depend on their batch.

    The outputs of the samples are weighted by different powers of two: the gradient of their sum
    is then the weighted sum of the gradients of each sample alone, unless the model mixes samples.

    Args:
        problem: the problem, inside `prepared`.
        x: samples, of which the first 16 are used.
    """
    x = x[:_MOST]
    bounds = bounds_of(problem)
    outputs = forward(problem.model, feedable(x)).detach()
    compare(problem.model, x, outputs, ([i] for i in range(len(x))))
    weights = 0.5 ** (torch.arange(len(x), device=x.device) % 4)
    cotangent = Cotangents.normal(problem.cotangents.width, 0, problem.cotangents.like).part(0, 1)
    apart = norm = 0.0
    for group in _groups(problem, default_memory(problem.devices)):
        outputs = forward(problem.model, feedable(x))
        scalar = weights.to(outputs) @ (outputs @ cotangent[0])
        reentrant = problem.survey.routes.reentrant
        together = autograd_gradients(scalar, problem.model, group, reentrant, False)
        alone: Gradients = {}
        passes = plain_gradients(problem.model, group, x, cotangent, reentrant)
        for sample, _, gradients in passes:
            for name, gradient in gradients.items():
                part = gradient * weights[sample].to(gradient)
                alone[name] = alone[name] + part if name in alone else part
        for name in alone.keys() | together.keys():
            apart += square_of_difference(together.get(name), alone.get(name))
            norm += squared_norm(alone[name]) if name in alone else 0.0
    if apart > bounds.alone**2 * norm:
        _refuse_mixing(problem, x, bounds)


def _refuse_mixing(problem: Problem, x: Tensor, bounds: Bounds) -> NoReturn:
    cotangent = Cotangents.normal(problem.cotangents.width, 0, problem.cotangents.like).part(0, 1)
    place = describe_gradient_mixing(problem.model, x, cotangent[0], bounds.alone)
    raise ModelError(
        f"a sample's gradients change with the others in its batch, though its outputs do not by "
        f"more than rounding"
        f"{f', first {place}' if place else ''}, so that the kernel between samples is not "
        f"defined; take away hooks and custom backward passes that mix samples or normalise "
        f"gradients over the batch"
    )


def near(
    problem: Problem, layers: Mapping[str, Tensor], expected: Mapping[str, float], weight: float
) -> bool:
    """Return whether kernels by layer have the squared norms of their gradients' weighted sums."""
    bounds = bounds_of(problem)
    values = {layer: matrices[0].double() for layer, matrices in layers.items()}
    sizes = {layer: float(v[0, 0] + weight**2 * v[1, 1]) for layer, v in values.items()}
    found = {layer: sizes[layer] + 2 * weight * float(v[1, 0]) for layer, v in values.items()}
    scale = max(sum(sizes.values()), sum(expected.values()))
    loose = {layer_of(name) for name in problem.survey.routes.general}
    error = 0.0
    for layer, value in found.items():
        off, own = value - expected[layer], max(sizes[layer], expected[layer])
        if layer in loose:
            if abs(off) > bounds.alone * scale:
                return False
        elif abs(off) > bounds.layer * own + bounds.least * scale:
            return False
        else:
            error += off
    return abs(error) <= bounds.total * scale


def bounds_of(problem: Problem) -> Bounds:
    """Return the bounds for the coarsest dtype of outputs, parameters and what is between them."""
    survey = problem.survey
    used = {p.dtype for name, p in problem.parameters.items() if survey.route(name) != "unused"}
    known = [torch.finfo(dtype).eps for dtype in {problem.cotangents.like.dtype, *used}]
    coarsest = max(rounding_of(problem.model), *known)
    return next(b for dtype, b in _BOUNDS.items() if coarsest <= torch.finfo(dtype).eps)


def _in_batch(problem: Problem, group: Mapping[str, nn.Parameter]) -> Gradients:
    """Return the weighted sum of both gradients, name → [p], from a pass that the rules record."""
    survey = problem.survey
    if survey.routes.ruled:
        ruled = {name: problem.parameters[name] for name in survey.routes.ruled}
        with attempted():
            outputs, _ = record(problem.model, ruled, problem.x, attached=True)
    else:
        outputs = forward(problem.model, feedable(problem.x))
    weights = torch.tensor([1.0, _WEIGHT], dtype=outputs.dtype, device=outputs.device)
    with attempted():
        scalar = weights @ (outputs @ problem.cotangents.part(0, 1)[0])
        return autograd_gradients(scalar, problem.model, group, survey.routes.reentrant, False)


def least_for_check(problem: Problem) -> int:
    """Return the bytes that the self-check of the largest parameter takes."""
    return round((_TOGETHER + _COMPUTED) * problem.element * _largest(problem)) + _passing(problem)


def bytes_of_gradients(problem: Problem) -> int:
    """Return the bytes of all gradients that plain autograd gives in one pass."""
    return round(_TOGETHER * problem.element * sum(map(real_numbers, problem.parameters.values())))


def _passing(problem: Problem) -> int:
    """Return the bytes that the passes of two samples keep."""
    return 2 * problem.element * problem.survey.work.passing


def _largest(problem: Problem) -> int:
    return max(real_numbers(p) for p in problem.parameters.values())


def _groups(problem: Problem, budget: int) -> Iterator[dict[str, nn.Parameter]]:
    """Yield the parameters some at a time, since gradients of all may not fit into the budget."""
    room = (budget - _passing(problem)) // problem.element - _COMPUTED * _largest(problem)
    most = max(_FEW, round(room / _TOGETHER))
    sizes = {name: real_numbers(p) for name, p in problem.parameters.items()}
    group: dict[str, nn.Parameter] = {}
    for name, p in problem.parameters.items():
        if group and sum(sizes[held] for held in group) + sizes[name] > most:
            yield group
            group = {}
        group[name] = p
    yield group
