"""Find out which parameters the layer rules may take: those whose every use is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

from conescope.engine.layers.call import INTERLEAVED, Call, Pull
from conescope.engine.tracing.forward import RoutesChangedError, attempted, reachable
from conescope.engine.tracing.recorder import Recorder, record

Result = TypeVar("Result")
Signature = tuple[tuple[str, str | None, str | None], ...]


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
        idle: numbers of the calls that no output depends on.
        reached: for each call, how many of its positions gradients reach; None for all.
        geometry: settings and sizes of each call.
        picks: whether an operation picks by an index, so that samples may change places.
        choices: what the recorder chose where shapes did not tell.
        provisional: whether a call was left to the general route only because no gradient
            arrived at it, as in front of a head that starts at zero.
    """

    ruled: tuple[str, ...]
    general: tuple[str, ...]
    transformed: bool = False
    reentrant: bool = False
    signature: Signature = ()
    axes: tuple[int, ...] = ()
    idle: frozenset[int] = frozenset()
    reached: tuple[int | None, ...] = ()
    geometry: tuple[tuple[object, ...], ...] = ()
    picks: bool = False
    choices: tuple[int, ...] = ()
    provisional: bool = False


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


def watched(run: Callable[[], tuple[Tensor, Result]]) -> tuple[Tensor, Result, dict[int, int]]:
    """Return what a recorded forward pass returns, and what autograd saves of it; see `Trace`."""
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its own node held would never be freed

    try:
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), attempted():
            return *run(), saved
    except RoutesChangedError:
        return *run(), {}


def find_routes(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], pair: Tensor
) -> tuple[Routes, Trace | None]:
    """Split the parameters into those that rules can take and the others; see `general.complete`.

    A rule may take a parameter if (1) no operation without a rule takes part in, (2) the graph of
    autograd without the recorded calls does not reach it, and (3) gradients of one sample's
    outputs arrive, and only in this sample's slice of each call.

    Args:
        model: the network; the parameters require gradients.
        parameters: those whose kernel is wanted.
        pair: two samples.

    Returns:
        The routes, and the forward pass that showed them; None if no parameter has a rule.
    """
    ruled = {
        name: p for name, p in parameters.items() if not p.is_complex() and not p._backward_hooks
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
                silent, idle = False, frozenset()
                if not refused:
                    refused, silent, idle = _place_samples(outputs, recorder.calls)
        except RoutesChangedError:
            break
        provisional |= silent
        if not refused:
            trace = Trace(outputs, recorder.calls, saved)
            return _routes_of(parameters, ruled, recorder, idle, provisional), trace
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
    idle: frozenset[int],
    provisional: bool,
) -> Routes:
    return Routes(
        ruled=tuple(ruled),
        general=tuple(name for name in parameters if name not in ruled),
        signature=tuple(call.signature for call in recorder.calls),
        axes=tuple(call.batch_axis for call in recorder.calls),
        idle=idle,
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
    if recorder.uncovered or tuple(call.signature for call in calls) != routes.signature:
        raise RoutesChangedError
    if recorder.picks and routes.ruled and not routes.picks:
        raise RoutesChangedError
    places = zip(calls, routes.axes, routes.reached, routes.geometry, strict=True)
    for number, (call, axis, reached, geometry) in enumerate(places):
        if number in routes.idle:
            continue
        if not call.fits(len(x), axis) or call.source._version != call.version:
            raise RoutesChangedError
        call.batch_axis, call.samples, call.reached = axis, len(x), reached
        if call.geometry != geometry:
            raise RoutesChangedError
    return outputs, calls


def _place_samples(outputs: Tensor, calls: list[Call]) -> tuple[set[str], bool, frozenset[int]]:
    """Find the axis that numbers the two samples in each call.

    Returns:
        The parameters of calls without such an axis; whether some are refused only because no
        gradient arrives; the numbers of the calls that no output depends on.
    """
    refused: set[str] = set()
    if not calls:
        return refused, False, frozenset()
    edges = [call.edge for call in calls]
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(outputs.shape[1], generator=generator, device="cpu").to(outputs)
    try:
        by_sample = [
            torch.autograd.grad(outputs[i] @ cotangent, edges, retain_graph=True, allow_unused=True)
            for i in range(2)
        ]
    except RuntimeError:  # of a checkpoint whose second pass differs
        return {name for call in calls for name in call.names.values()}, False, frozenset()
    idle = frozenset(n for n, g in enumerate(by_sample[0]) if g is None and by_sample[1][n] is None)
    silent = False
    for number, (call, *found) in enumerate(zip(calls, *by_sample, strict=True)):
        gradients = [None if g is None else call.shaped(g) for g in found]
        arrived = all(g is not None and bool(g.any()) for g in gradients)
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
        if number not in idle and not (fitting and arrived):
            refused |= set(call.names.values())
            silent |= bool(fitting)
        elif number not in idle and (whole := _sum(found)) is not None:
            call.reached = call.count_reached(whole)
    return refused, silent, idle


def _sum(gradients: Sequence[Tensor | None]) -> Tensor | None:
    """Return the sum of the gradients of two samples, each of which is zero where the other is not.

    None if one of them is missing.
    """
    first, second = gradients
    return None if first is None or second is None else first + second


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
