"""One kernel to be computed: checked, surveyed, and cut into parts that fit into memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from conescope.engine.arguments import (
    AbsentOutputError,
    Convention,
    Cotangents,
    check_inputs,
    check_parameters,
    choose_parameters,
    refuse_absent_weights,
)
from conescope.engine.compute.budget import Cut, cut, least_bytes
from conescope.engine.compute.shape import Pairing
from conescope.engine.compute.spill import room_on_disk
from conescope.engine.general import AutogradNorms, complete
from conescope.engine.independence import Recheck, first_pass, refuse_coupling_modules
from conescope.engine.preconditioning import Roots
from conescope.engine.tracing.forward import OtherOutputsError, RoutesChangedError
from conescope.engine.tracing.routes import Routes, find_routes
from conescope.engine.tracing.survey import Survey, in_parts, survey_pair
from conescope.engine.tracing.untouched import requiring_grad, untouched
from conescope.engine.tracing.writes import watching_writes

Measure = TypeVar("Measure", bound=Callable[..., Any])

_MANY_PASSES = 512
"""Compared with so many passes, those of two samples and one cotangent cost little."""
_CHEAP_PASS = 2**20
"""A pass over all samples that keeps no more numbers than these takes next to no time."""


@dataclass(frozen=True)
class Problem:
    """One kernel to be computed.

    Attributes:
        model: the network.
        parameters: those whose kernel is wanted, by name.
        x: n samples.
        y: m samples, or None for x itself.
        pairing: which cotangents of two samples are multiplied.
        cotangents: q vectors over the c outputs.
        survey: what is known of the model.
        recheck: chooses the samples that are computed again; None for no samples.
        autograd_norms: takes plain autograd's gradients in the passes of the rules, for the
            self-check; None otherwise.
        roots: of the preconditioner; None for the plain kernel.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    x: Tensor
    y: Tensor | None
    pairing: Pairing
    cotangents: Cotangents
    survey: Survey
    recheck: Recheck | None = None
    autograd_norms: AutogradNorms | None = None
    roots: Roots | None = None

    def scaled(self, name: str, gradients: Tensor) -> Tensor:
        """Return gradients [..., p] of a parameter as the preconditioned kernel has them."""
        return gradients if self.roots is None else self.roots.scaled(name, gradients)

    def preconditioned(self) -> Problem:
        """Return the problem with the terms that its preconditioner needs."""
        return self if self.roots is None else replace(self, survey=self.roots.formed(self.survey))

    @property
    def bytes_of_roots(self) -> int:
        """Bytes that the preconditioner's roots hold."""
        return 0 if self.roots is None else self.roots.bytes

    @property
    def pair(self) -> Tensor:
        """Two samples, the same one twice if there is no other."""
        return _pair(self.x)

    @property
    def checks_gradients(self) -> bool:
        """Whether gradients of a few samples are computed again each time, at little cost."""
        n, q = len(self.x), len(self.cotangents)
        return n * q >= _MANY_PASSES or n * self.survey.work.passing <= _CHEAP_PASS

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the kernel: that of the outputs, and at least float32."""
        return torch.promote_types(self.cotangents.like.dtype, torch.float32)

    @property
    def devices(self) -> set[torch.device]:
        """The devices of the parameters and of the outputs, where the kernel is made."""
        return {self.cotangents.like.device, *(p.device for p in self.parameters.values())}

    @property
    def element(self) -> int:
        """Bytes of a number of the kernel, and of its factors."""
        return self.dtype.itemsize

    @property
    def samples(self) -> tuple[int, int | None]:
        """The numbers of samples n and m; m is None for the kernel between x and itself."""
        return len(self.x), None if self.y is None else len(self.y)

    @property
    def least_bytes(self) -> int:
        """The smallest budget, without what the result takes while it is made."""
        full = self.pairing is Pairing.FULL
        return least_bytes(self.survey.work, len(self.cotangents), full, self.element)

    def pieces(self, budget: int, fixed: int = 0) -> Cut:
        """Cut the work so that it fits into the memory allowed; see `budget.cut`.

        Raises:
            KernelError: if the budget is too small.
        """
        q, full = len(self.cotangents), self.pairing is Pairing.FULL
        disk = room_on_disk if self.x.device.type == "cpu" else lambda: 0
        return cut(self.survey.work, self.samples, q, full, self.element, budget, fixed, disk)

    def parts(self, budget: int) -> list[Problem]:
        """Divide the parameters without a rule if their gradients are too many to hold at once.

        The kernel is the sum of the kernels of the parts.
        """
        n, m = self.samples
        q = len(self.cotangents) if self.pairing is Pairing.FULL else 1
        room = budget // (2 * self.element * ((n + (m or 0)) * q + 2))
        return [replace(self, survey=part) for part in in_parts(self.survey, room)]


@contextmanager
def prepared(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    params: str | Iterable[str] | None,
    cotangents: Convention,
    pairing: Pairing = Pairing.SUMMED,
    preconditioner: Mapping[str, Tensor] | None = None,
) -> Iterator[Problem]:
    """Check all that can be checked on a few samples, survey the model, and leave it as it was.

    Args:
        model: the network; inside, the parameters chosen require gradients, beside those that
            did before.
        x: n samples.
        y: m samples, or None.
        params: see `choose_parameters`.
        cotangents: makes the cotangents from the number of outputs and a tensor like them.
        pairing: which cotangents of two samples are multiplied.
        preconditioner: see `entk`.

    Raises:
        ModelError: if the model or the samples have no exact kernel as they stand.
        KernelError: if the convention does not fit the outputs, or the preconditioner the model.
    """
    parameters = choose_parameters(model, params)
    refuse_absent_weights(model)
    for name, samples in (("x", x), ("y", y)):
        if samples is not None:
            check_inputs(name, samples)
    check_parameters(model)
    refuse_coupling_modules(model)
    x, y = x.detach(), None if y is None else y.detach()
    like = _run_unless_known(model, parameters, x)
    with untouched(model), requiring_grad(parameters.values()):
        survey = _survey_of(model, parameters, x, like, {})
        chosen = cotangents(survey.like.shape[1], survey.like)
        recheck = _recheck_of(model, x, y)
        problem = Problem(model, parameters, x, y, pairing, chosen, survey, recheck)
        if preconditioner is not None:
            roots = Roots(model, parameters, preconditioner, problem.dtype)
            known = _MEMOS[model].surveys.get(True, replace(survey, checked=False))
            problem = replace(problem, survey=known, roots=roots)
        yield problem


@dataclass
class _Memo:
    """What is remembered of a model from one kernel to the next.

    Attributes:
        key: what the model, its parameters and its samples were when they were first run.
        like: an empty tensor [0, c] of the outputs' dtype and device.
        surveys: whether kernels are preconditioned → the survey, if there is one yet.
        compared: the samples that have been compared with themselves alone.
        largest: the number of samples of the largest of them.
        generator: draws the samples that are computed again.
    """

    key: Hashable = None
    like: Tensor | None = None
    surveys: dict[bool, Survey] = field(default_factory=dict)
    compared: set[Hashable] = field(default_factory=set)
    largest: int = 0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))


_MEMOS: weakref.WeakKeyDictionary[nn.Module, _Memo] = weakref.WeakKeyDictionary()


def measured_anew(measure: Measure) -> Measure:
    """Let a function of a model begin again if it has another number of outputs than remembered."""

    @wraps(measure)
    def call(model: nn.Module, *args: Any, **named: Any) -> Any:
        try:
            return measure(model, *args, **named)
        except (OtherOutputsError, AbsentOutputError):
            _MEMOS.pop(model, None)
        return measure(model, *args, **named)

    return call  # pyright: ignore[reportReturnType]


def _run_unless_known(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor
) -> Tensor:
    """Run two samples, and watch what is written, unless known; return the `like` of `_Memo`."""
    memo = _MEMOS.setdefault(model, _Memo())
    key = (
        tuple((name, id(module), module.training) for name, module in model.named_modules()),
        tuple((name, id(p), p.shape, bool(p._backward_hooks)) for name, p in parameters.items()),
        (*(p.dtype for p in model.parameters()), x.shape[1:], x.dtype, x.device, len(x) > 1),
    )
    if memo.like is None or memo.key != key:
        memo.surveys, memo.compared, memo.largest = {}, set(), 0
        with untouched(model), requiring_grad(parameters.values()), watching_writes(model):
            memo.like = first_pass(model, x)
        memo.key = key
    return memo.like


def _survey_of(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    x: Tensor,
    like: Tensor,
    departures: Mapping[str, int],
) -> Survey:
    """Return the survey of a model that is prepared, remembered or new; see `find_routes`."""
    memo = _MEMOS[model]
    if False not in memo.surveys:
        pair = _pair(x)
        found, trace = find_routes(model, parameters, pair, departures)
        routes = complete(found, model, parameters, pair)
        try:
            survey = survey_pair(model, parameters, pair, routes, like, trace)
        except RoutesChangedError:
            routes = complete(Routes((), tuple(parameters)), model, parameters, pair)
            survey = survey_pair(model, parameters, pair, routes, like)
        if survey.routes.provisional:
            return survey
        memo.surveys[False] = survey
    return memo.surveys[False]


def survey_anew(problem: Problem, departures: Mapping[str, int]) -> Survey:
    """Return a new survey of a model that no longer keeps to its routes; see `find_routes`."""
    _MEMOS[problem.model].surveys.clear()
    return _survey_of(problem.model, problem.parameters, problem.x, problem.survey.like, departures)


def remember_survey(problem: Problem, survey: Survey) -> None:
    """Put a survey that has been checked in the place of the one remembered, if it may be kept."""
    if not survey.routes.provisional:
        _MEMOS[problem.model].surveys[problem.roots is not None] = survey


def _pair(x: Tensor) -> Tensor:
    return x[:2] if len(x) > 1 else x[[0, 0]]


def _recheck_of(model: nn.Module, x: Tensor, y: Tensor | None) -> Recheck:
    """Choose what is computed again: all of these samples the first time, later a few."""
    memo = _MEMOS[model]
    given = [t for t in (x, y) if t is not None]
    key = tuple(
        (t.data_ptr(), t.shape, t.stride(), 0 if t.is_inference() else t._version) for t in given
    )
    most = max(map(len, given))

    def done() -> None:
        memo.compared.add(key)
        memo.largest = max(memo.largest, most)

    return Recheck(model, key not in memo.compared, memo.generator, most > memo.largest, done)
