"""Choose routes that a model keeps to and that pass the self-check, the fastest that do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from conescope.engine.compute.allocator import return_freed_pages
from conescope.engine.compute.budget import too_small
from conescope.engine.general import without_rules
from conescope.engine.piecewise import kernel_of
from conescope.engine.problem import Problem, forget_survey, remember_survey, survey_model
from conescope.engine.selfcheck import (
    agrees_in_one_pass,
    agrees_with_autograd,
    least_for_check,
    refuse_mixed_gradients,
    sample_problem,
    with_autograd_norms,
)
from conescope.engine.tracing.forward import RoutesChangedError
from conescope.engine.tracing.survey import Survey, with_all_positions, without_positions
from conescope.errors import KernelError, ModelError

Result = TypeVar("Result")


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
    try:
        return run(problem, verify), problem
    except RoutesChangedError:
        forget_survey(problem.model)
    refuse_mixed_gradients(problem, problem.x)
    anew = survey_model(problem.model, problem.parameters, problem.x, problem.survey.like)
    for survey in itertools.chain([anew], _plainer(anew, problem)):
        problem = dataclasses.replace(problem, survey=survey)
        if problem.recheck is not None:
            problem.recheck.begin()
        try:
            result = run(problem, True)
        except RoutesChangedError:
            continue
        if survey.routes.ruled:  # where others fail for good, as with more positions than at first
            remember_survey(problem.model, survey)
        return result, problem
    raise AssertionError("plain autograd follows a model whichever operations it calls")


def _plainer(survey: Survey, problem: Problem) -> Iterator[Survey]:
    """Yield surveys whose routes ask less and less of a model; the last is plain autograd."""
    if any(reached is not None for reached in survey.routes.reached):
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
    parts = (part.least_bytes for part in problem.parts(budget))
    least = max(least_for_check(problem), *parts)
    if least > budget:
        raise KernelError(too_small(budget, least))
    alone_follows = problem.recheck is not None and len(problem.x) > 1
    for survey in itertools.chain([problem.survey], _plainer(problem.survey, problem)):
        small = sample_problem(problem, survey)
        try:
            agrees = alone_follows and _passes_at_once(small, budget)
            layers = {} if agrees else kernel_of(small, True, "model", budget)
            finite = all(bool(torch.isfinite(values).all()) for values in layers.values())
            if finite and not agrees:
                agrees = agrees_with_autograd(small, layers, budget, alone_follows)
        except RoutesChangedError:
            continue
        if not finite:  # the whole kernel will name the sample
            return dataclasses.replace(problem, survey=survey)
        if agrees:
            survey = dataclasses.replace(survey, checked=True)
            remember_survey(problem.model, survey)
            return_freed_pages()
            return dataclasses.replace(problem, survey=survey)
        refuse_mixed_gradients(problem, problem.x)
    raise ModelError(
        "plain autograd gives two different kernels of two samples: the model's gradients change "
        "from call to call; make its forward pass a function of its input alone"
    )


def _passes_at_once(small: Problem, budget: int) -> bool:
    """Return whether a kernel of two samples agrees with autograd's gradients of the same pass.

    Where it does not, as with hooks of which each changes the gradients of one of the two, separate
    passes decide.
    """
    watched = with_autograd_norms(small, budget)
    if watched is None:
        return False
    problem, left = watched
    try:
        layers = kernel_of(problem, True, "model", left)
    except RoutesChangedError:
        return False
    finite = all(bool(torch.isfinite(values).all()) for values in layers.values())
    return finite and agrees_in_one_pass(problem, layers)
