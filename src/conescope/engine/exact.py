"""entk(): the exact empirical neural tangent kernel of a model, by routes that are checked."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import TypeVar

import torch
from torch import Tensor, nn

from conescope.argument_types import checked
from conescope.engine.arguments import convention, is_finite
from conescope.engine.compute.allocator import return_freed_pages
from conescope.engine.compute.budget import parse_memory, too_small
from conescope.engine.compute.shape import Pairing
from conescope.engine.compute.terms import sum_of
from conescope.engine.diagnosis import raise_not_finite, refuse_without_gradient
from conescope.engine.general import AutogradNorms, without_rules
from conescope.engine.passes import Precision, kernel_of
from conescope.engine.problem import Problem, measured_anew, prepared, remember_survey, survey_anew
from conescope.engine.selfcheck import (
    agrees_with_autograd,
    bytes_of_gradients,
    least_for_check,
    near,
    refuse_mixed_gradients,
    sample_problem,
)
from conescope.engine.tracing.forward import RoutesChangedError
from conescope.engine.tracing.routes import MOST_DEPARTURES
from conescope.engine.tracing.survey import Survey, with_all_positions, without_positions
from conescope.errors import KernelError, ModelError
from conescope.kernel.matrix import Kernel, Outputs

Result = TypeVar("Result")


@checked
@measured_anew
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
    preconditioner: Mapping[str, Tensor] | None = None,
) -> Kernel:
    """Compute the empirical NTK ⟨∂f(x_i)/∂θ, ∂f(y_j)/∂θ⟩ of a model (arXiv:2503.16316, eq. 3).

    The model is left as it was to the bit, whatever its forward pass writes.

    Args:
        model: any module in evaluation mode that maps a batch [n, …] to outputs [n, …]; outputs
            of more than one dimension are flattened to c numbers a sample. Complex parameters
            count with their real and their imaginary parts.
        x: n samples, on the device on which the model takes them. Its parameters may be on several
            devices, between which it moves its activations itself.
        y: m samples for the second index; None for y = x, whose kernel is exactly symmetric.
        outputs: which outputs enter, see `Kernel.outputs`.
        by_layer: whether to keep the summands of each layer, too.
        params: names or patterns (`*`, `?`) of parameters or modules to restrict the kernel to;
            None for all that are not frozen.
        memory: budget beyond the model and the result, "2GB" or bytes; None for a quarter of the
            memory of the machine, or of the smallest GPU that holds the model or its outputs.
        check: whether to compare two samples' kernel with plain autograd, the first time that a
            model of these routes is measured; routes that fail are replaced by the general one.
        precision: "bfloat16" rounds the factors of the products to 8 bits, for speed; the sums
            and the network itself keep the model's dtype.
        preconditioner: parameter name → entries of a diagonal P, of the parameter's shape, finite
            and at least 0, for the kernel J P Jᵀ that drives the outputs under an optimiser such
            as Adam; see `conescope.preconditioner`. A complex entry has the entry of the real part
            as its real part, and that of the imaginary part as its imaginary part.

    Returns:
        The kernel; `values` is [n, m], or [n, c, m, c] for "full", in the dtype of the outputs
        and at least float32. Inner products are exact to 1e-6 of the diagonal in float32,
        whatever the number of parameters.

    Raises:
        ModelError: if the model or the input has no exact kernel as it stands: samples that
            depend on each other, gradients that are not finite, outputs that depend on none of
            the parameters.
        KernelError: if `outputs`, `memory` or `preconditioner` is wrong, or the budget too small.
    """
    if precision not in ("model", "bfloat16"):
        raise KernelError(f'precision is "model" or "bfloat16", not {precision!r}')
    with prepared(model, x, y, params, *convention(outputs), preconditioner) as problem:
        layers, survey = compute(problem, by_layer, precision, memory, check)
        total = sum_of(layers) if by_layer else layers[""]
        routes = {name: survey.route(name) for name in problem.parameters}
        return Kernel(total, outputs, layers if by_layer else {}, routes)


def compute(
    problem: Problem, by_layer: bool, precision: Precision, memory: str | float | None, check: bool
) -> tuple[Mapping[str, Tensor], Survey]:
    """Compute the kernel of a prepared problem.

    Returns:
        Layer → values, all under "" unless by layer: [n, m], or [n, q, m, q] for the cotangents
        in full, or [q, n, m] where they are apart. And the survey that says by which route each
        parameter was taken.

    Raises:
        ModelError: as `entk`.
        KernelError: as `entk`.
    """
    budget = parse_memory(memory, problem.devices)
    first = check and not problem.survey.checked
    if first:
        problem = self_checked(problem, budget)
    recheck = problem.recheck
    if first and recheck is not None:
        recheck.begin()
    verify = first or (check and recheck is not None and recheck.verify)

    def run(problem: Problem, verify: bool) -> dict[str, Tensor]:
        return kernel_of(problem, by_layer, precision, budget, verify)

    layers, problem = by_some_route(problem, run, verify)
    if recheck is not None:
        recheck.done()
    n, m = problem.samples
    q = len(problem.cotangents)
    shape = {
        Pairing.SUMMED: (n, m or n), Pairing.FULL: (n, q, m or n, q), Pairing.APART: (q, n, m or n)
    }[problem.pairing]  # fmt: skip
    finished = {name: values.to(problem.dtype).view(shape) for name, values in layers.items()}
    # of a symmetric kernel the diagonal decides: it is zero or not finite wherever a row is
    decisive = [v if m is not None else v.diagonal(dim1=1, dim2=2) for v in layers.values()]
    decisive = [values.to(problem.dtype) for values in decisive]
    if not all(map(is_finite, decisive)):
        raise_not_finite(problem)
    if not any(bool(values.any()) for values in decisive):
        refuse_without_gradient(problem)
    return finished, problem.survey


def by_some_route(
    problem: Problem, run: Callable[[Problem, bool], Result], verify: bool
) -> tuple[Result, Problem]:
    """Run by the routes of the survey, or by plainer ones if the model departs from them.

    Args:
        problem: the problem, inside `prepared`.
        run: computes from a problem, and from whether to check the order of samples.
        verify: whether to check it where the model does not depart from its routes.

    Returns:
        What `run` returns, and the problem with the routes that it was run by.

    Raises:
        ModelError: if samples depend on each other.
    """
    recheck = problem.recheck

    def attempt(tried: Problem) -> tuple[Result, Problem]:
        if tried is problem:
            return run(tried, verify), tried
        if recheck is not None:
            recheck.begin()
        found = run(tried, True)
        # routes that fail once may fail for good, as those of fewer positions
        if tried.survey.routes.ruled:
            remember_survey(tried, tried.survey)
        return found, tried

    try:
        return _surveyed_anew(attempt, problem)
    except RoutesChangedError:
        refuse_mixed_gradients(problem, problem.x)
    for survey in _plainer(survey_anew(problem, {}), problem):
        with suppress(RoutesChangedError):
            return attempt(dataclasses.replace(problem, survey=survey))
    raise AssertionError("plain autograd follows a model whichever operations it calls")


def _surveyed_anew(attempt: Callable[[Problem], Result], problem: Problem) -> Result:
    """Return what an attempt gives by the routes of the survey, or of one made anew.

    A survey is made anew as long as the model departs from it at calls where it has not before.

    Raises:
        RoutesChangedError: if the model departs from the last one, too.
    """
    departures: Counter[str] = Counter()
    tried = problem
    while True:
        try:
            return attempt(tried)
        except RoutesChangedError as error:
            names = {name for name in error.args if departures[name] < MOST_DEPARTURES}
            if tried is not problem and not names:
                raise
            departures.update(names)
        tried = dataclasses.replace(problem, survey=survey_anew(problem, departures))


def _plainer(survey: Survey, problem: Problem) -> Iterator[Survey]:
    """Yield surveys whose routes ask less and less of a model; the last is plain autograd."""
    if any(reached is not None for reached in survey.routes.reached):
        with suppress(RoutesChangedError):
            survey = with_all_positions(survey, problem.model, problem.parameters, problem.pair)
        yield survey
    if survey.work.shapes:
        yield without_positions(survey)
    general = without_rules(survey, problem.model, problem.parameters, problem.pair)
    yield general
    if general.routes.transformed:
        plain = dataclasses.replace(general.routes, transformed=False)
        work = dataclasses.replace(general.work, transformed=False)
        yield dataclasses.replace(general, routes=plain, work=work)


def self_checked(problem: Problem, budget: int) -> Problem:
    """Return the problem with routes that pass the self-check, the plainest if no other does.

    Raises:
        ModelError: if the model's gradients change from call to call, or with the batch.
        KernelError: if the budget is too small.
    """
    parts = (part.least_bytes for part in problem.preconditioned().parts(budget))
    least = max(least_for_check(problem), *parts) + problem.bytes_of_roots
    if least > budget:
        raise KernelError(too_small(budget, least))
    try:
        return _surveyed_anew(lambda tried: _checked([tried.survey], tried, budget), problem)
    except RoutesChangedError:
        plainer = _plainer(survey_anew(problem, {}), problem)
    try:
        return _checked(plainer, problem, budget)
    except RoutesChangedError:
        raise ModelError(
            "plain autograd gives two different kernels of two samples: the model's gradients "
            "change from call to call; make its forward pass a function of its input alone"
        ) from None


def _checked(surveys: Iterable[Survey], problem: Problem, budget: int) -> Problem:
    """Return the problem with the first survey whose routes pass the self-check.

    Raises:
        RoutesChangedError: if none does.
        ModelError: as `self_checked`.
    """
    alone_follows = problem.recheck is not None and len(problem.x) > 1
    departed = RoutesChangedError()
    for survey in surveys:
        small = sample_problem(problem, survey)
        try:
            agrees = alone_follows and _passes_at_once(small, budget)
            layers = {} if agrees else kernel_of(small, True, "model", budget)
            finite = all(bool(torch.isfinite(values).all()) for values in layers.values())
            if finite and not agrees:
                agrees = agrees_with_autograd(small, layers, budget, alone_follows)
        except RoutesChangedError as error:
            departed = error
            continue
        if not finite:  # the whole kernel will name the sample
            return dataclasses.replace(problem, survey=survey)
        if agrees:
            survey = dataclasses.replace(survey, checked=True)
            remember_survey(problem, survey)
            return_freed_pages()
            return dataclasses.replace(problem, survey=survey)
        refuse_mixed_gradients(problem, problem.x)
    raise departed


def _passes_at_once(small: Problem, budget: int) -> bool:
    """Return whether a kernel of two samples agrees with autograd's gradients of the same pass.

    Separate passes decide where it does not, as with hooks of which each changes the gradients of
    one of the two, where a parameter has no rule, and where gradients of all do not fit.
    """
    routes = small.survey.routes
    if routes.general or not routes.ruled or routes.reentrant:
        return False
    ruled = {name: small.parameters[name] for name in routes.ruled}
    norms = AutogradNorms(ruled, small.scaled)
    left = budget - bytes_of_gradients(small)
    if small.preconditioned().least_bytes + small.bytes_of_roots > left:
        return False
    try:
        layers = kernel_of(dataclasses.replace(small, autograd_norms=norms), True, "model", left)
    except RoutesChangedError:
        return False
    finite = all(bool(torch.isfinite(values).all()) for values in layers.values())
    return finite and near(small, layers, norms.squares, 1.0)
