"""Find out which parameters the layer rules may take: those whose every use is recorded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from conescope.engine.layers.call import INTERLEAVED, Call, Pull
from conescope.engine.tracing.forward import RoutesChangedError, attempted, reachable, watched
from conescope.engine.tracing.recorder import Recorder, record

Signature = tuple[tuple[str, str | None, str | None], ...]

MOST_DEPARTURES = 2
"""A parameter is left to the general route after so many departures in the course of one kernel."""


@dataclass(frozen=True)
class Routes:
    """The route of every parameter, found on two samples.

    Attributes:
        ruled: names of parameters whose every use is a recorded call.
        general: names of all others.
        transformed: whether transforms of torch.func reach every use of the general parameters;
            otherwise plain autograd takes them, sample by sample.
        reentrant: whether a re-entrant checkpoint hides part of the graph of autograd.
        signature: the recorded calls, in order.
        axes: for each call, the axis that numbers the samples.
        idle: numbers of the calls that no output depends on, or that are quiet.
        quiet: numbers of the calls at which the gradients of two samples are zero; those of all
            others have to be zero, too.
        reached: for each call, how many of its positions gradients reach; None for all.
        geometry: settings and sizes of each call.
        picks: whether an operation picks by an index, so that samples may change places.
        choices: what the recorder chose where shapes did not tell.
        provisional: whether a parameter is general only because a sample's gradients are zero yet.
    """

    ruled: tuple[str, ...]
    general: tuple[str, ...]
    transformed: bool = False
    reentrant: bool = False
    signature: Signature = ()
    axes: tuple[int, ...] = ()
    idle: frozenset[int] = frozenset()
    quiet: frozenset[int] = frozenset()
    reached: tuple[int | None, ...] = ()
    geometry: tuple[tuple[object, ...], ...] = ()
    picks: bool = False
    choices: tuple[int, ...] = ()
    provisional: bool = False

    @property
    def unused(self) -> frozenset[int]:
        """Numbers of the calls that no output depends on."""
        return self.idle - self.quiet

    @property
    def quiet_parameters(self) -> set[str]:
        """The parameters of the quiet calls."""
        return {name for n in self.quiet for name in self.signature[n][1:] if name is not None}


@dataclass(frozen=True)
class Trace:
    """A recorded forward pass of two samples.

    Attributes:
        outputs: [2, c], in autograd's graph.
        calls: the recorded calls.
        saved: address → bytes of the memory that autograd keeps for the backward pass; empty
            where transforms of torch.func inside the model refuse to be watched.
    """

    outputs: Tensor
    calls: list[Call]
    saved: Mapping[int, int]


def find_routes(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    pair: Tensor,
    departures: Mapping[str, int] = MappingProxyType({}),
) -> tuple[Routes, Trace | None]:
    """Split the parameters into those that rules can take and the others; see `general.complete`.

    A rule may take a parameter if (1) no operation without a rule takes part in, (2) the graph of
    autograd without the recorded calls does not reach it, and (3) gradients of one sample's
    outputs arrive, and only in this sample's slice of each call.

    Args:
        model: the network; the parameters require gradients.
        parameters: those whose kernel is wanted.
        pair: two samples.
        departures: how often a pass of other samples has departed from the routes of a parameter:
            after the first time its calls are not taken to be quiet, see `MOST_DEPARTURES`.

    Returns:
        The routes, and the forward pass that showed them; None if no parameter has a rule.
    """
    ruled = {
        name: p
        for name, p in parameters.items()
        if not p.is_complex()
        and not p._backward_hooks
        and departures.get(name, 0) < MOST_DEPARTURES
    }
    provisional = False
    unlikely: dict[str, int] = {}
    while ruled:
        try:
            with attempted():
                recorded = partial(record, model, ruled, pair, unlikely=unlikely)
                outputs, recorder, saved = watched(recorded)
                reached, opaque = reachable(outputs, ruled)
                refused = set(ruled) if opaque else recorder.uncovered | reached
                placed = _Placed()
                if not refused:
                    placed = _place_samples(outputs, recorder.calls, departures)
                    refused = placed.refused
        except RoutesChangedError:
            break
        provisional |= placed.silent
        if not refused:
            trace = Trace(outputs, recorder.calls, saved)
            return _routes_of(parameters, ruled, recorder, placed, provisional), trace
        again = {
            name: kinds
            for name in refused
            if (kinds := _next_kinds(unlikely.get(name, 0), recorder.doubtful.get(name, 0)))
        }
        # others may be refused only because of a choice that was wrong
        tried = (refused & unlikely.keys()) - again.keys()
        dropped = tried or (set() if again else refused)
        unlikely |= again
        ruled = {name: p for name, p in ruled.items() if name not in dropped}
    return Routes((), tuple(parameters), provisional=provisional), None


def _routes_of(
    parameters: Mapping[str, nn.Parameter],
    ruled: Mapping[str, nn.Parameter],
    recorder: Recorder,
    placed: _Placed,
    provisional: bool,
) -> Routes:
    idle = frozenset(placed.unused | placed.quiet)
    return Routes(
        ruled=tuple(ruled),
        general=tuple(name for name in parameters if name not in ruled),
        signature=tuple(call.signature for call in recorder.calls),
        axes=tuple(call.batch_axis for call in recorder.calls),
        idle=idle,
        quiet=frozenset(placed.quiet),
        reached=tuple(call.reached for call in recorder.calls),
        geometry=tuple(
            () if number in idle else call.geometry for number, call in enumerate(recorder.calls)
        ),
        picks=recorder.picks,
        choices=tuple(recorder.chosen),
        provisional=provisional,
    )


def _next_kinds(tried: int, doubtful: int) -> int:
    """Return the kinds of choices to make differently after those tried; 0 if all were tried."""
    return next((k for k in range(tried + 1, doubtful + 1) if not k & ~doubtful), 0)


def follow(
    model: nn.Module,
    parameters: Mapping[str, Tensor],
    x: Tensor,
    routes: Routes,
    attached: bool = False,
) -> tuple[Tensor, list[Call]]:
    """Run a forward pass as `record` does, and compare its calls with the routes.

    Args:
        model: the network.
        parameters: by name.
        x: [b, …].
        routes: the routes.
        attached: see `Recorder`.

    Raises:
        RoutesChangedError: if the model's calls are not those of `routes`.
    """
    ruled = {name: parameters[name] for name in routes.ruled}
    with attempted():
        outputs, recorder = record(model, ruled, x, attached, choices=routes.choices)
    calls = recorder.calls
    found = tuple(call.signature for call in calls)
    if recorder.uncovered or found != routes.signature:
        odd = Counter(found), Counter(routes.signature)
        others = {name for _, *names in (odd[0] - odd[1]) + (odd[1] - odd[0]) for name in names}
        raise RoutesChangedError(*recorder.uncovered, *(others - {None}))
    if recorder.picks and routes.ruled and not routes.picks:
        raise RoutesChangedError
    places = zip(calls, routes.axes, routes.reached, routes.geometry, strict=True)
    misfits: set[str] = set()
    for number, (call, axis, reached, geometry) in enumerate(places):
        call.batch_axis, call.samples, call.reached = axis, len(x), reached
        if number in routes.idle:
            continue
        fits = call.fits(len(x), axis) and call.source._version == call.version
        if not fits or call.geometry != geometry:
            misfits.update(call.names.values())
    if misfits:
        raise RoutesChangedError(*misfits)
    return outputs, calls


@dataclass
class _Placed:
    """What two samples' gradients tell about the calls.

    Attributes:
        refused: the parameters of calls without an axis that numbers the samples.
        silent: whether some are refused only because no gradient of one sample arrives yet.
        unused: the numbers of the calls that no output depends on.
        quiet: those of the calls at which all gradients are zero.
    """

    refused: set[str] = field(default_factory=set)
    silent: bool = False
    unused: set[int] = field(default_factory=set)
    quiet: set[int] = field(default_factory=set)


def _place_samples(outputs: Tensor, calls: list[Call], departures: Mapping[str, int]) -> _Placed:
    """Find the axis that numbers the two samples in each call."""
    if not calls:
        return _Placed()
    edges = [call.edge for call in calls]
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(outputs.shape[1], generator=generator, device="cpu").to(outputs)
    try:
        by_sample = [
            torch.autograd.grad(outputs[i] @ cotangent, edges, retain_graph=True, allow_unused=True)
            for i in range(2)
        ]
    except RuntimeError:  # of a checkpoint whose second pass differs
        return _Placed({name for call in calls for name in call.names.values()})
    placed = _Placed()
    for number, (call, *found) in enumerate(zip(calls, *by_sample, strict=True)):
        gradients = [None if g is None else call.shaped(g) for g in found]
        arrived = [g for g in found if g is not None and bool(g.any())]
        fitting = [
            axis
            for axis in (0, 1, INTERLEAVED)
            if call.source._version == call.version
            and call.fits(2, axis)
            and all(_is_within(g, axis, sample) for sample, g in enumerate(gradients))
        ]
        call.batch_axis, call.samples = fitting[0] if fitting else 0, 2
        if not all(map(_works, call.pulls.values())):
            fitting = []
        departed = not departures.keys().isdisjoint(call.names.values())
        if all(g is None for g in found):
            placed.unused.add(number)
        elif not (arrived or departed):
            placed.quiet.add(number)
        elif not (fitting and len(arrived) == len(found)):
            placed.refused |= set(call.names.values())
            placed.silent |= bool(fitting) and not departed
        else:
            call.reached = call.count_reached(arrived[0] + arrived[1])
    return placed


def _works(pull: Pull) -> bool:
    """Return whether gradients of a tensor made of parameters become those of a parameter."""
    try:
        with attempted():
            pull(pull.tensor.new_zeros(2, pull.tensor.numel()))
    except RoutesChangedError:
        return False
    return True


def _is_within(g: Tensor | None, axis: int, sample: int) -> bool:
    """Return whether a cotangent vanishes outside one of two samples."""
    if g is None:
        return True
    if axis == INTERLEAVED and g.dim() and g.shape[0] % 2 == 0:
        return not bool(g.unflatten(0, (-1, 2))[:, 1 - sample].any())
    if g.dim() <= axis or g.shape[axis] % 2:
        return False
    half = g.shape[axis] // 2
    outside = g.narrow(axis, half * (1 - sample), half)
    return not bool(outside.any())
