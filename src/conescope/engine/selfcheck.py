"""The self-check: compare a small kernel with plain autograd before a large one is computed.

Two samples and one random cotangent suffice. Gradients that plain autograd takes in the very pass
that the rules record differ from theirs by nothing but the order of sums, so they are held to a
narrow bound, layer by layer. Gradients of each sample alone come from other passes, in which
rounding may flip a ReLU, so the bound between the two is wide.
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
from conescope.engine.compute.products import add_gram
from conescope.engine.general import Gradients, autograd_gradients, plain_gradients
from conescope.engine.independence import compare, rounding_of
from conescope.engine.mixing import describe_gradient_mixing
from conescope.engine.problem import Problem
from conescope.engine.tracing.forward import RoutesChangedError, attempted, feedable, forward
from conescope.engine.tracing.recorder import record
from conescope.engine.tracing.survey import layer_of, real_numbers
from conescope.errors import ModelError

_FEW = 2**20
"""Parameters of so few numbers in all are checked in one go, whatever the budget."""
_MOST = 16
"""Samples whose gradients are compared with those of each alone."""
_HELD = 8
"""Gradients of a sample held at once: two of a batch, one of the sample alone, those being computed
(three of a tied weight), and what the allocator cannot hand out again at once."""


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


def sample_problem(problem: Problem) -> Problem:
    """Return the same problem for two of its samples and one cotangent, drawn at random.

    The draw is the same each time, and so is the kernel.
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
        full=False,
        cotangents=Cotangents.normal(cotangents.width, n, cotangents.like),
        recheck=None,
    )


def agrees_with_autograd(problem: Problem, layers: Mapping[str, Tensor], budget: int) -> bool:
    """Return whether the kernels by layer of a `sample_problem` are those of plain autograd.

    Args:
        problem: two samples and one cotangent.
        layers: layer → kernel, [2, 2].
        budget: bytes.

    Raises:
        ModelError: if a sample's gradients depend on its batch, whatever the route.
    """
    bounds = bounds_of(problem)
    expected = {name: torch.zeros(2, 2, dtype=torch.float64, device="cpu") for name in layers}
    apart, norms = (torch.zeros(2, dtype=torch.float64, device="cpu") for _ in range(2))
    general, reentrant = set(problem.survey.routes.general), problem.survey.routes.reentrant
    for group in _groups(problem, budget):
        try:
            batch = _in_batch(problem, group)
        except RoutesChangedError:
            if problem.survey.routes.ruled:
                raise
            batch = None  # only gradients of samples alone are used then
        for name in (batch or {}).keys() - general:
            _add(expected, name, batch[name])  # pyright: ignore[reportOptionalSubscript]
        rows: Gradients = {}
        for sample, _, gradients in plain_gradients(
            problem.model, group, problem.x, problem.cotangents.part(0, 1), reentrant
        ):
            for name in list(gradients):
                gradient = gradients.pop(name)
                norms[sample] += _squares(gradient[None])[0]
                if name in general:
                    _place(rows, sample, {name: gradient})
                if batch is not None and name in batch:
                    batch[name][sample] -= gradient
                elif batch is not None:
                    apart[sample] += _squares(gradient[None])[0]
        for name, found in rows.items():
            _add(expected, name, found)
        apart += sum(map(_squares, (batch or {}).values()))
    if bool((apart > bounds.alone**2 * norms).any()):
        if problem.survey.routes.ruled:
            return False
        _refuse_mixing(problem, problem.x, bounds)
    return _near(problem, layers, expected, bounds)


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
            found = [g[None] for g in (together.get(name), alone.get(name)) if g is not None]
            difference = found[0] - found[1] if len(found) == 2 else found[0]
            apart += float(_squares(difference))
            norm += float(_squares(alone[name][None])) if name in alone else 0.0
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


def _near(
    problem: Problem, layers: Mapping[str, Tensor], expected: Mapping[str, Tensor], bounds: Bounds
) -> bool:
    scale = float(torch.stack([*expected.values()]).sum(dim=0).diagonal().max())
    loose = {layer_of(name) for name in problem.survey.routes.general}
    error = torch.zeros_like(next(iter(expected.values())))
    for layer, values in layers.items():
        off = values.double().cpu() - expected[layer]
        if layer in loose:
            if bool((off.abs() > bounds.alone * scale).any()):
                return False
        else:
            own = float(expected[layer].diagonal().max())
            if bool((off.abs() > bounds.layer * own + bounds.least * scale).any()):
                return False
            error += off
    return not bool((error.abs() > bounds.total * scale).any())


def bounds_of(problem: Problem) -> Bounds:
    """Return the bounds for the coarsest dtype of outputs, parameters and what is between them."""
    survey = problem.survey
    used = {p.dtype for name, p in problem.parameters.items() if survey.route(name) != "unused"}
    known = [torch.finfo(dtype).eps for dtype in {problem.cotangents.like.dtype, *used}]
    coarsest = max(rounding_of(problem.model), *known)
    return next(b for dtype, b in _BOUNDS.items() if coarsest <= torch.finfo(dtype).eps)


def _in_batch(problem: Problem, group: Mapping[str, nn.Parameter]) -> Gradients:
    """Return gradients of both samples, name → [2, p], from one pass that the recorder follows."""
    survey = problem.survey
    if survey.routes.ruled:
        ruled = {name: problem.parameters[name] for name in survey.routes.ruled}
        with attempted():
            outputs, _ = record(problem.model, ruled, problem.x, attached=True)
    else:
        outputs = forward(problem.model, feedable(problem.x))
    rows: Gradients = {}
    cotangent = problem.cotangents.part(0, 1)[0]
    for sample, row in enumerate(outputs):
        with attempted():
            gradients = autograd_gradients(
                cotangent @ row, problem.model, group, survey.routes.reentrant, sample == 0
            )
        _place(rows, sample, gradients)
    return rows


def _add(kernels: Mapping[str, Tensor], name: str, rows: Tensor) -> None:
    """Add the products of a parameter's gradients [2, p] to the kernel of its layer."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    gram = rows.new_zeros(2, 2, dtype=torch.float64)
    add_gram(gram, rows.to(dtype), None)
    kernels[layer_of(name)].add_(gram.cpu())


def _place(rows: Gradients, sample: int, gradients: Gradients) -> None:
    for name, gradient in gradients.items():
        if name not in rows:
            rows[name] = gradient.new_zeros(2, len(gradient))
        rows[name][sample] = gradient


def _squares(rows: Tensor) -> Tensor:
    """Return squared norms of rows [r, p] in float64, without copying the rows to float64."""
    gram = rows.new_zeros(len(rows), len(rows), dtype=torch.float64)
    add_gram(gram, rows.to(torch.promote_types(rows.dtype, torch.float32)), None)
    return gram.diagonal().cpu()


def least_for_check(problem: Problem) -> int:
    """Return the bytes that the self-check of the largest parameter takes."""
    largest = max(real_numbers(p) for p in problem.parameters.values())
    return _HELD * problem.element * largest


def _groups(problem: Problem, budget: int) -> Iterator[dict[str, nn.Parameter]]:
    """Yield the parameters some at a time, since gradients of all may not fit into the budget."""
    most = max(_FEW, budget // (2 * _HELD * problem.element))
    sizes = {name: real_numbers(p) for name, p in problem.parameters.items()}
    group: dict[str, nn.Parameter] = {}
    for name, p in problem.parameters.items():
        if group and sum(sizes[held] for held in group) + sizes[name] > most:
            yield group
            group = {}
        group[name] = p
    yield group
