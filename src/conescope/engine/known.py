"""What is remembered of a model from one kernel to the next."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from conescope.engine.attempt import RoutesChangedError
from conescope.engine.independence import Witness, first_look
from conescope.engine.routes import Routes, find_routes, with_general_way
from conescope.engine.state import requiring_grad, untouched
from conescope.engine.survey import Survey, survey_pair
from conescope.engine.writes import watching_writes


@dataclass
class _Memo:
    key: Hashable = None
    like: Tensor | None = None
    survey: Survey | None = None
    compared: set[Hashable] = field(default_factory=set)
    largest: int = 0
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))


_MEMOS: weakref.WeakKeyDictionary[nn.Module, _Memo] = weakref.WeakKeyDictionary()


def look_at(model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor) -> Tensor:
    """Try a model that has not been seen, or not as it is now: its outputs, and what it writes.

    Args:
        model: the network.
        parameters: those whose kernel is wanted.
        x: samples.

    Returns:
        An empty tensor [0, c] of the outputs' dtype and device.

    Raises:
        ModelError: if the model rejects samples, or they depend on each other.
    """
    memo = _MEMOS.setdefault(model, _Memo())
    key = (
        tuple((name, id(module), module.training) for name, module in model.named_modules()),
        tuple((name, id(p), p.shape) for name, p in parameters.items()),
        (x.shape[1:], x.dtype, x.device, len(x) > 1),
    )
    if memo.like is None or memo.key != key:
        memo.survey, memo.compared, memo.largest = None, set(), 0
        with untouched(model), requiring_grad(parameters.values()), watching_writes(model):
            memo.like = first_look(model, x)
        memo.key = key
    return memo.like


def survey_model(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor, like: Tensor
) -> Survey:
    """The survey of a model; remembered as long as the model keeps its modules and modes.

    Args:
        model: the network; the parameters require gradients.
        parameters: those whose kernel is wanted.
        x: samples.
        like: what `look_at` gave.
    """
    memo = _MEMOS[model]
    if memo.survey is None:
        pair = x[:2] if len(x) > 1 else x[[0, 0]]
        routes = find_routes(model, parameters, pair)
        try:
            survey = survey_pair(model, parameters, pair, routes, like)
        except RoutesChangedError:
            general = Routes((), tuple(parameters))
            routes = with_general_way(general, model, parameters, pair)
            survey = survey_pair(model, parameters, pair, routes, like)
        if survey.routes.provisional:
            return survey
        memo.survey = survey
    return memo.survey


def witness_of(model: nn.Module, x: Tensor, y: Tensor | None) -> Witness:
    """Make what compares batches of these samples with their parts: all of them, the first time."""
    memo = _MEMOS[model]
    given = [t for t in (x, y) if t is not None]
    key = tuple(
        (t.data_ptr(), t.shape, t.stride(), 0 if t.is_inference() else t._version) for t in given
    )
    most = max(map(len, given))

    def done() -> None:
        memo.compared.add(key)
        memo.largest = max(memo.largest, most)

    return Witness(model, key not in memo.compared, memo.generator, most > memo.largest, done)


def forget(model: nn.Module) -> None:
    """Drop the survey of a model that has changed its way."""
    _MEMOS[model].survey = None


def remember(model: nn.Module, known: Survey) -> None:
    """Put a survey that has been checked in the place of the one remembered, if it may be kept."""
    if not known.routes.provisional:
        _MEMOS[model].survey = known
