"""entk(): the empirical neural tangent kernel of a model, piece by piece."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from conescope.engine.accumulator import Accumulator, sum_of
from conescope.engine.arguments import parse_memory
from conescope.engine.attempt import RoutesChangedError
from conescope.engine.budget import Cut, cut, default_memory, least_bytes, too_small
from conescope.engine.diagnosis import refuse_not_finite, refuse_without_gradient
from conescope.engine.factors import Factory
from conescope.engine.known import forget, remember, survey_model
from conescope.engine.problem import Problem, convention, prepared
from conescope.engine.products import Scratch, keep_freed_pages
from conescope.engine.selfcheck import (
    agrees_with_autograd,
    least_for_check,
    refuse_mixed_gradients,
    sample_problem,
)
from conescope.engine.survey import (
    Survey,
    only,
    real_numbers,
    without_general,
    without_positions,
    without_rules,
)
from conescope.errors import KernelError, ModelError
from conescope.kernel.matrix import Kernel, Outputs

Precision = Literal["model", "bfloat16"]


def entk(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    outputs: Outputs = "trace",
    by_layer: bool = False,
    params: str | Iterable[str] | None = None,
    memory: str | float | None = None,
    check: bool = True,
    precision: Precision = "model",
) -> Kernel:
    """The empirical neural tangent kernel ⟨∂f(x_i)/∂θ, ∂f(y_j)/∂θ⟩ (arXiv:2503.16316, eq. 3).

    The model is left as it was to the bit, whatever its forward pass writes.

    Args:
        model: any module in evaluation mode that maps a batch [n, …] to outputs [n, …]; outputs
            of more than one dimension are flattened to c numbers a sample. Complex parameters
            count with their real and their imaginary parts.
        x: n samples, on the model's device.
        y: m samples for the second index; None for y = x, whose kernel is exactly symmetric.
        outputs: which outputs enter, see `Kernel.outputs`.
        by_layer: whether to keep the summands of each layer, too.
        params: names or patterns (`*`, `?`) of parameters or modules to restrict the kernel to;
            None for all that are not frozen.
        memory: budget beyond the model and the result, "2GB" or bytes.
        check: whether to compare two samples' kernel with plain autograd, the first time that a
            model of these routes is seen; routes that fail are replaced by the general one.
        precision: "bfloat16" rounds the factors of the products to 8 bits, for speed; the sums
            and the network itself keep the model's dtype.

    Returns:
        The kernel; `values` is [n, m], or [n, c, m, c] for "full", in the dtype of the outputs
        and at least float32. Inner products are exact to 1e-6 of the diagonal in float32,
        whatever the number of parameters.

    Raises:
        ModelError: if the model or the input has no exact kernel as it stands: samples that
            depend on each other, gradients that are not finite, outputs that depend on none of
            the parameters.
        KernelError: if `outputs` or `memory` is wrong, or the budget too small.
    """
    if precision not in ("model", "bfloat16"):
        raise KernelError(f'precision is "model" or "bfloat16", not {precision!r}')
    with prepared(model, x, y, params, convention(outputs), outputs == "full") as problem:
        layers, survey = compute(problem, by_layer, precision, memory, check)
        total = sum_of(layers) if by_layer else layers[""]
        routes = {name: survey.route(name) for name in problem.parameters}
        return Kernel(total, outputs, layers if by_layer else {}, routes)


def compute(
    problem: Problem,
    by_layer: bool,
    precision: Precision,
    memory: str | float | None,
    check: bool,
) -> tuple[dict[str, Tensor], Survey]:
    """The kernel of a prepared problem.

    Returns:
        Layer → values [n, m] or [n, q, m, q], all under "" unless by layer; and the survey that
        says how each parameter was taken.

    Raises:
        ModelError: as `entk`.
        KernelError: as `entk`.
    """
    budget = parse_memory(memory) or default_memory()
    first = check and not problem.survey.checked
    if first:
        least = max(least_for_check(problem), *map(least_of, parts_of(problem, budget)))
        if least > budget:
            raise KernelError(too_small(budget, least))
        problem = _checked(problem, budget)
    witness = problem.witness
    verify = first or (check and witness is not None and witness.verify)
    layers, problem = _by_some_route(problem, by_layer, precision, budget, verify)
    if witness is not None:
        witness.done()
    n, m = len(problem.x), len(problem.x if problem.y is None else problem.y)
    q = len(problem.cotangents)
    shape = (n, q, m, q) if problem.full else (n, m)
    finished = {name: values.to(problem.dtype).view(shape) for name, values in layers.items()}
    refuse_not_finite(problem, finished)
    refuse_without_gradient(problem, finished)
    return finished, problem.survey


def _by_some_route(
    problem: Problem, by_layer: bool, precision: Precision, budget: int, verify: bool
) -> tuple[dict[str, Tensor], Problem]:
    """The kernel by the routes of the survey, or by the next that the model keeps to."""
    try:
        return _kernel(problem, by_layer, precision, budget, verify), problem
    except RoutesChangedError:
        forget(problem.model)
    refuse_mixed_gradients(problem, problem.x)
    anew = survey_model(problem.model, problem.parameters, problem.x, problem.survey.like)
    for survey in (anew, *_plainer(anew, problem)):
        problem = dataclasses.replace(problem, survey=survey)
        try:
            return _kernel(problem, by_layer, precision, budget, verify=True), problem
        except RoutesChangedError:
            continue
    raise AssertionError("plain autograd takes every way that a model takes")


def _plainer(survey: Survey, problem: Problem) -> Iterator[Survey]:
    """Surveys whose routes ask less and less of a model; the last one is plain autograd."""
    if survey.shapes:
        yield without_positions(survey)
    general = without_rules(survey, problem.model, problem.parameters, problem.x)
    yield general
    if general.routes.transformed:
        plain = dataclasses.replace(general.routes, transformed=False)
        yield dataclasses.replace(general, routes=plain)


def _checked(problem: Problem, budget: int) -> Problem:
    """The problem with routes that agree with plain autograd, the plainest if need be."""
    for survey in (problem.survey, *_plainer(problem.survey, problem)):
        small = dataclasses.replace(sample_problem(problem), survey=survey)
        try:
            layers = _kernel(small, True, "model", budget)
            finite = all(bool(torch.isfinite(values).all()) for values in layers.values())
            agrees = finite and agrees_with_autograd(small, layers, budget)
        except RoutesChangedError:
            continue
        if not finite:  # the kernel itself says which sample it is
            return dataclasses.replace(problem, survey=survey)
        if agrees:
            survey = dataclasses.replace(survey, checked=True)
            remember(problem.model, survey)
            return dataclasses.replace(problem, survey=survey)
        refuse_mixed_gradients(problem, problem.x)
    raise ModelError(
        "plain autograd gives two different kernels of two samples: the model's gradients change "
        "from call to call; make its forward pass a function of its input alone"
    )


def _kernel(
    problem: Problem, by_layer: bool, precision: Precision, budget: int, verify: bool = False
) -> dict[str, Tensor]:
    """Layer → values [n·q, m·q] or [n, m], in the dtype in which they were added up."""
    keep_freed_pages()
    accumulator = Accumulator(problem, by_layer)
    dtype = torch.bfloat16 if precision == "bfloat16" else problem.dtype
    fixed = accumulator.bytes_beyond_result
    for part in parts_of(problem, budget - fixed):
        pieces = pieces_of(part, budget, fixed)
        factory = Factory(part, by_layer, pieces.block, dtype, Scratch(pieces.scratch), verify)
        if part.witness is not None:
            part.witness.expect(-(-len(problem.x) // pieces.block))
        for start in range(0, len(part.cotangents), pieces.directions):
            group = part.cotangents.part(start, start + pieces.directions)
            _add_group(accumulator, factory, part, group, pieces)
    return accumulator.finish()


def pieces_of(problem: Problem, budget: int, fixed: int = 0) -> Cut:
    """How the work on a problem is cut so that it fits into the memory allowed.

    Raises:
        KernelError: if the budget is too small.
    """
    samples = len(problem.x), None if problem.y is None else len(problem.y)
    element = torch.empty(0, dtype=problem.dtype).element_size()
    q = len(problem.cotangents)
    return cut(problem.survey, samples, q, problem.full, element, budget, fixed)


def least_of(problem: Problem) -> int:
    """The smallest budget for a problem, in bytes, without what its result takes in the making."""
    element = torch.empty(0, dtype=problem.dtype).element_size()
    return least_bytes(problem.survey, len(problem.cotangents), problem.full, element)


def parts_of(problem: Problem, budget: int) -> list[Problem]:
    """The problem as a sum: parameters without a rule go some at a time if all are too many."""
    survey = problem.survey
    whole = len(problem.x) + (0 if problem.y is None else len(problem.y))
    q = len(problem.cotangents) if problem.full else 1
    element = torch.empty(0, dtype=problem.dtype).element_size()
    room = budget // (2 * element * (whole * q + 2))
    sizes = {name: real_numbers(problem.parameters[name]) for name in survey.routes.general}
    if sum(sizes.values()) <= room:
        return [problem]
    groups: list[list[str]] = [[]]
    for name, size in sizes.items():
        if groups[-1] and sum(sizes[held] for held in groups[-1]) + size > room:
            groups.append([])
        groups[-1].append(name)
    surveys = [only(survey, group) for group in groups]
    if survey.routes.ruled:
        surveys.insert(0, without_general(survey))
    return [dataclasses.replace(problem, survey=part) for part in surveys]


def _add_group(
    accumulator: Accumulator, factory: Factory, problem: Problem, group: Tensor, pieces: Cut
) -> None:
    """Add the products of all pairs of chunks, for some of the cotangents."""
    x, y, size = problem.x, problem.y, pieces.chunk
    for start in range(0, len(x), size):
        left = factory(x[start : start + size], group)
        if y is None:
            accumulator.add(left, None, start, start, factory.scratch)
        for begin in range(0, start if y is None else len(y), size):
            other = x if y is None else y
            right = factory(other[begin : begin + size], group)
            accumulator.add(left, right, start, begin, factory.scratch)
