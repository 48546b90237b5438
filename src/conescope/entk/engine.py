"""entk(): the empirical neural tangent kernel of a model, piece by piece."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from conescope.entk.arguments import parse_memory
from conescope.entk.assignment import layer_of
from conescope.entk.budget import Cut, cut, default_memory
from conescope.entk.factors import Factory
from conescope.entk.problem import Problem, prepare
from conescope.entk.products import Scratch, keep_freed_pages, mirror
from conescope.entk.routes import RoutesChangedError
from conescope.entk.selfcheck import agrees_with_autograd, sample_problem
from conescope.entk.survey import forget, remember, survey_model, without_rules
from conescope.entk.terms import Term
from conescope.errors import KernelError, ModelError
from conescope.kernel import Kernel, Outputs

Precision = Literal["model", "bfloat16"]


def entk(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    outputs: Outputs = "trace",
    by_layer: bool = False,
    params: Iterable[str] | None = None,
    memory: str | float | None = None,
    check: bool = True,
    precision: Precision = "model",
) -> Kernel:
    """The empirical neural tangent kernel ⟨∂f(x_i)/∂θ, ∂f(y_j)/∂θ⟩ (arXiv:2503.16316, eq. 3).

    Args:
        model: any module in evaluation mode that maps a batch [n, …] to outputs [n, …]; outputs
            of more than one dimension are flattened to c numbers a sample.
        x: n samples, on the model's device.
        y: m samples for the second index; None for y = x, whose kernel is exactly symmetric.
        outputs: which outputs enter, see `Kernel.outputs`.
        by_layer: whether to keep the summands of each layer, too.
        params: names of parameters or modules to restrict the kernel to; None for all that are
            not frozen.
        memory: budget beyond the model and the result, "2GB" or bytes.
        check: whether to compare two samples' kernel with plain autograd, the first time that a
            model of these routes is seen; routes that fail are replaced by the general one.
        precision: "bfloat16" rounds the factors of the products to 8 bits, for speed; the sums
            and the network itself keep the model's dtype.

    Returns:
        The kernel; `values` is [n, m], or [n, c, m, c] for "full", in the model's dtype.

    Raises:
        ModelError: if the model or the input has no exact kernel as it stands.
        KernelError: if `outputs` or `memory` is wrong, or the budget too small.
    """
    if precision not in ("model", "bfloat16"):
        raise KernelError(f'precision is "model" or "bfloat16", not {precision!r}')
    problem = prepare(model, x, y, outputs, params)
    return _entk(problem, by_layer, precision, memory, check)


def entk_of_directions(
    problem: Problem, directions: Tensor, memory: str | float | None, check: bool
) -> Kernel:
    """The summed kernel of other cotangents [q, c] of a prepared problem."""
    return _entk(dataclasses.replace(problem, directions=directions), False, "model", memory, check)


@torch.inference_mode(mode=False)
@torch.enable_grad()
def _entk(
    problem: Problem,
    by_layer: bool,
    precision: Precision,
    memory: str | float | None,
    check: bool,
) -> Kernel:
    budget = parse_memory(memory) or default_memory()
    first = check and not problem.survey.checked
    if first:
        problem = _checked(problem, budget)
    try:
        return _compute(problem, by_layer, precision, budget, first)
    except RoutesChangedError:
        forget(problem.model)
    anew = survey_model(problem.model, problem.parameters, problem.x)
    for survey in (anew, without_rules(anew, problem.parameters)):
        problem = dataclasses.replace(problem, survey=survey)
        try:
            return _compute(problem, by_layer, precision, budget, verify=True)
        except RoutesChangedError:
            continue
    raise AssertionError("the general route follows any model")


def _checked(problem: Problem, budget: int) -> Problem:
    """The problem with routes that agree with plain autograd, found without rules if need be."""
    for survey in (problem.survey, without_rules(problem.survey, problem.parameters)):
        small = dataclasses.replace(sample_problem(problem), survey=survey)
        try:
            values = _compute(small, False, "model", budget).values
        except RoutesChangedError:
            continue
        if agrees_with_autograd(small, values):
            survey = dataclasses.replace(survey, checked=True)
            remember(problem.model, survey)
            return dataclasses.replace(problem, survey=survey)
    raise ModelError(
        "the kernel of two samples does not agree with plain autograd by any route: the model's "
        "gradients depend on the batch or change from call to call; make its forward pass a "
        "function of each sample alone"
    )


def _compute(
    problem: Problem, by_layer: bool, precision: Precision, budget: int, verify: bool = False
) -> Kernel:
    keep_freed_pages()
    survey = problem.survey
    n, m = len(problem.x), None if problem.y is None else len(problem.y)
    full = problem.outputs == "full"
    directions = problem.directions
    dtype = torch.bfloat16 if precision == "bfloat16" else directions.dtype
    pieces = cut(
        survey, (n, m), len(directions), full, torch.finfo(directions.dtype).bits // 8, budget
    )
    factory = Factory(
        problem.model, problem.parameters, survey, by_layer, pieces.block, dtype,
        Scratch(pieces.scratch), verify,
    )  # fmt: skip
    accumulator = _Accumulator(problem, full, by_layer)
    for group in directions.split(pieces.directions):
        _add_group(accumulator, factory, problem, group, pieces)
    layers = accumulator.finish()
    shape = (n, len(directions), m or n, len(directions)) if full else (n, m or n)
    parts = {name: values.view(shape) for name, values in layers.items()}
    total = sum_of(parts) if by_layer else parts[""]
    routes = {name: survey.route(name) for name in problem.parameters}
    return Kernel(total, problem.outputs, parts if by_layer else {}, routes)


def _add_group(
    accumulator: _Accumulator, factory: Factory, problem: Problem, group: Tensor, pieces: Cut
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


class _Accumulator:
    """The kernel of each layer in the making, as matrices [n·q, m·q] or [n, m]."""

    def __init__(self, problem: Problem, full: bool, by_layer: bool) -> None:
        self.full = full
        self.q = len(problem.directions) if full else 1
        self.symmetric = problem.y is None
        columns = len(problem.x if problem.y is None else problem.y)
        self.shape = len(problem.x) * self.q, columns * self.q
        self.like = problem.directions
        layers = map(layer_of, problem.parameters) if by_layer else [""]
        self.layers = {layer: self.like.new_zeros(self.shape) for layer in dict.fromkeys(layers)}

    def add(
        self,
        left: Mapping[str, list[Term]],
        right: Mapping[str, list[Term]] | None,
        row: int,
        column: int,
        scratch: Scratch,
    ) -> None:
        """Add the products of two chunks, whose first samples are `row` and `column`."""
        for layer, terms in left.items():
            others = terms if right is None else right[layer]
            for term, other in zip(terms, others, strict=True):
                place = self.layers[layer][row * self.q :, column * self.q :]
                place = place[: term.samples * self.q, : other.samples * self.q]
                term.add_to(place, None if right is None else other, self.full, scratch)

    def finish(self) -> dict[str, Tensor]:
        """Layer → matrix, symmetric to the last bit where x is y."""
        if self.symmetric:
            for values in self.layers.values():
                mirror(values)
        return self.layers


def sum_of(parts: Mapping[str, Tensor]) -> Tensor:
    """The sum, in one order."""
    first, *others = parts.values()
    total = first.clone()
    for part in others:
        total += part
    return total
