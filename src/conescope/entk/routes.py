"""Which parameters the layer rules may take: those whose every use a rule has provably seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conescope.entk.calls import Call
from conescope.entk.independence import forward
from conescope.entk.recorder import Recorder

_LOOSE = 0.1
"""Rounding in any dtype is finer, the weights of two samples differ by a factor of two or more."""

Signature = tuple[tuple[str, str | None, str | None], ...]


class RoutesChangedError(Exception):
    """The model took another way than the one by which its routes were found."""


@dataclass
class Routes:
    """The way of every parameter, found on two samples.

    Attributes:
        ruled: names of parameters whose every use is a recorded call.
        general: names of all others.
        signature: the recorded calls, in order.
        axes: for each call, the axis that numbers the samples.
        idle: numbers of the calls that no output depends on.
        geometry: of each call.
        picks: whether samples may change places, since an operation picks by an index.
        provisional: whether a call was left to the general route only because no gradient
            arrived at it, as behind a head that starts at zero.
    """

    ruled: tuple[str, ...]
    general: tuple[str, ...]
    signature: Signature = ()
    axes: tuple[int, ...] = ()
    idle: frozenset[int] = frozenset()
    geometry: tuple[tuple[object, ...], ...] = ()
    picks: bool = False
    provisional: bool = False


def find_routes(model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor) -> Routes:
    """Split the parameters into those that rules can take and the others.

    A rule may take a parameter if (1) no operation without a rule takes part in, (2) the graph of
    autograd without the recorded calls does not reach it, and (3) gradients of one sample's
    outputs arrive, and only in this sample's slice of each call.

    Args:
        model: the network; the parameters require gradients.
        parameters: those whose kernel is wanted.
        x: samples, of which the first two are used.
    """
    pair = x[:2] if len(x) > 1 else x[[0, 0]]
    ruled = dict(parameters)
    provisional = False
    while ruled:
        outputs, recorder = record(model, ruled, pair)
        reachable, opaque = _reachable(outputs, ruled)
        refused = set(ruled) if opaque else recorder.strays | reachable
        if not refused:
            refused, silent, idle = _place_samples(outputs, recorder.calls)
            provisional |= silent
            if not refused:
                return Routes(
                    ruled=tuple(ruled),
                    general=tuple(name for name in parameters if name not in ruled),
                    signature=tuple(call.signature for call in recorder.calls),
                    axes=tuple(call.batch_axis for call in recorder.calls),
                    idle=idle,
                    geometry=tuple(
                        () if number in idle else call.geometry
                        for number, call in enumerate(recorder.calls)
                    ),
                    picks=recorder.picks,
                    provisional=provisional,
                )
        ruled = {name: p for name, p in ruled.items() if name not in refused}
    return Routes((), tuple(parameters), provisional=provisional)


def record(
    model: nn.Module, parameters: Mapping[str, Tensor], x: Tensor
) -> tuple[Tensor, Recorder]:
    """A forward pass: outputs [b, c] in a graph of autograd, and the recorded calls."""
    with torch.enable_grad():
        anchor = torch.zeros((), device=x.device, requires_grad=True)
        inputs = x.detach() + anchor.to(x.dtype) if x.is_floating_point() else x.clone()
        with Recorder(parameters, anchor) as recorder:
            outputs = forward(model, inputs)
    return outputs, recorder


def follow(
    model: nn.Module, parameters: Mapping[str, Tensor], x: Tensor, routes: Routes
) -> tuple[Tensor, list[Call]]:
    """`record`, held to the routes found before.

    Raises:
        RoutesChangedError: if the model's calls are not the ones of `routes`.
    """
    ruled = {name: parameters[name] for name in routes.ruled}
    outputs, recorder = record(model, ruled, x)
    calls = recorder.calls
    if recorder.strays or tuple(call.signature for call in calls) != routes.signature:
        raise RoutesChangedError
    if recorder.picks and routes.ruled and not routes.picks:
        raise RoutesChangedError
    places = zip(calls, routes.axes, routes.geometry, strict=True)
    for number, (call, axis, geometry) in enumerate(places):
        if number in routes.idle:
            continue
        if not call.fits(len(x), axis) or call.source._version != call.version:
            raise RoutesChangedError
        call.batch_axis, call.samples = axis, len(x)
        if call.geometry != geometry:
            raise RoutesChangedError
    return outputs, calls


def refuse_exchanged_samples(outputs: Tensor, calls: Sequence[Call]) -> None:
    """Hold a batch to the places of its samples, by two more backward passes.

    Where the outputs of a sample are weighted by a power of two, the gradients in its slice of each
    call are, too, unless the model has changed the order of its samples.

    Raises:
        RoutesChangedError: if it has.
    """
    samples = len(outputs)
    generator = torch.Generator().manual_seed(0)
    exponents = torch.randperm(samples, generator=generator) % 4
    weights = (0.5**exponents).to(outputs)
    direction = torch.randn(outputs.shape[1], generator=generator).to(outputs)
    edges = [call.edge for call in calls]

    def norms(cotangents: Tensor) -> list[Tensor | None]:
        gradients = torch.autograd.grad(
            outputs, edges, cotangents, retain_graph=True, allow_unused=True
        )
        return [
            None if g is None else call.samples_first(g).flatten(1).norm(dim=1)
            for call, g in zip(calls, gradients, strict=True)
        ]

    plain = norms(direction.expand_as(outputs))
    for norm, weighted in zip(plain, norms(weights[:, None] * direction), strict=True):
        if norm is not None and weighted is not None:
            expected = norm * weights.to(norm)
            if bool(((weighted - expected).abs() > _LOOSE * expected).any()):
                raise RoutesChangedError


def _reachable(outputs: Tensor, parameters: Mapping[str, Tensor]) -> tuple[set[str], bool]:
    """Parameters that the graph still reaches, and whether parts of it cannot be looked into."""
    names = {id(p): name for name, p in parameters.items()}
    found: set[str] = set()
    pending: list[Any] = [outputs.grad_fn]
    seen: set[Any] = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == "CheckpointFunctionBackward":
            return set(), True
        variable = getattr(node, "variable", None)
        if variable is not None and id(variable) in names:
            found.add(names[id(variable)])
        pending.extend(child for child, _ in node.next_functions)
    return found, False


def _place_samples(outputs: Tensor, calls: list[Call]) -> tuple[set[str], bool, frozenset[int]]:
    """Find the axis of two samples in each call.

    Returns:
        The parameters of calls without one; whether some are refused only because no gradient
        arrives; the numbers of the calls that no output depends on.
    """
    refused: set[str] = set()
    if not calls:
        return refused, False, frozenset()
    edges = [call.edge for call in calls]
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(outputs.shape[1], generator=generator).to(outputs)
    try:
        ways = [
            torch.autograd.grad(outputs[i] @ direction, edges, retain_graph=True, allow_unused=True)
            for i in range(2)
        ]
    except RuntimeError:  # a checkpoint that does not find its own operations again
        return {name for call in calls for name in call.names}, False, frozenset()
    idle = frozenset(n for n, g in enumerate(ways[0]) if g is None and ways[1][n] is None)
    silent = False
    for number, (call, *gradients) in enumerate(zip(calls, *ways, strict=True)):
        arrived = all(g is not None and bool(g.any()) for g in gradients)
        fitting = [
            axis
            for axis in range(2)
            if call.source._version == call.version
            and call.fits(2, axis)
            and all(_is_within(g, axis, sample) for sample, g in enumerate(gradients))
        ]
        call.batch_axis, call.samples = fitting[0] if fitting else 0, 2
        if number not in idle and not (fitting and arrived):
            refused |= set(call.names)
            silent |= bool(fitting)
    return refused, silent, idle


def _is_within(g: Tensor | None, axis: int, sample: int) -> bool:
    """Whether a cotangent vanishes outside one of two samples."""
    if g is None:
        return True
    if g.dim() <= axis or g.shape[axis] % 2:
        return False
    half = g.shape[axis] // 2
    outside = g.narrow(axis, half * (1 - sample), half)
    return not bool(outside.any())


@contextmanager
def only_requires_grad(model: nn.Module, chosen: Mapping[str, Tensor]) -> Iterator[None]:
    """Let exactly these parameters require gradients, and restore the flags afterwards."""
    wanted = set(map(id, chosen.values()))
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(id(p) in wanted)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
