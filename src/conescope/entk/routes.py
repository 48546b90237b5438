"""Which parameters the layer rules may take: those whose every use a rule has provably seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from conescope.entk.calls import Call
from conescope.entk.independence import forward
from conescope.entk.recorder import Recorder

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
    """

    ruled: tuple[str, ...]
    general: tuple[str, ...]
    signature: Signature = ()
    axes: tuple[int, ...] = ()
    idle: frozenset[int] = frozenset()


def find_routes(model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor) -> Routes:
    """Split the parameters into those that rules can take and the others.

    A rule may take a parameter if (1) no operation without a rule takes part in, (2) the graph of
    autograd without the recorded calls does not reach it, and (3) gradients of one sample's
    outputs arrive only in this sample's slice of each call.

    Args:
        model: the network; the parameters require gradients.
        parameters: those whose kernel is wanted.
        x: samples, of which the first two are used.
    """
    pair = x[:2] if len(x) > 1 else x[[0, 0]]
    ruled = dict(parameters)
    while ruled:
        outputs, recorder = record(model, ruled, pair)
        reachable, opaque = _reachable(outputs, ruled)
        refused = set(ruled) if opaque else recorder.strays | reachable
        if not refused:
            refused, axes, idle = _place_samples(outputs, recorder.calls)
            if not refused:
                general = tuple(name for name in parameters if name not in ruled)
                signature = tuple(call.signature for call in recorder.calls)
                return Routes(tuple(ruled), general, signature, axes, idle)
        ruled = {name: p for name, p in ruled.items() if name not in refused}
    return Routes((), tuple(parameters))


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
    for call, axis in zip(calls, routes.axes, strict=True):
        if not call.fits(len(x), axis) or call.source._version != call.version:
            raise RoutesChangedError
        call.batch_axis, call.samples = axis, len(x)
    return outputs, calls


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


def _place_samples(
    outputs: Tensor, calls: list[Call]
) -> tuple[set[str], tuple[int, ...], frozenset[int]]:
    """The parameters of calls without an axis of samples; each call's axis; the idle calls."""
    refused: set[str] = set()
    axes: list[int] = []
    if not calls:
        return refused, (), frozenset()
    edges = [call.edge for call in calls]
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(outputs.shape[1], generator=generator).to(outputs)
    try:
        ways = [
            torch.autograd.grad(outputs[i] @ direction, edges, retain_graph=True, allow_unused=True)
            for i in range(2)
        ]
    except RuntimeError:  # a checkpoint that does not find its own operations again
        names = {name for call in calls for name in (call.weight, call.bias) if name}
        return names, (), frozenset()
    idle = frozenset(n for n, g in enumerate(ways[0]) if g is None and ways[1][n] is None)
    for call, first, second in zip(calls, *ways, strict=True):
        fitting = [
            axis
            for axis in range(2)
            if call.source._version == call.version
            and call.fits(2, axis)
            and _is_within(first, axis, 0)
            and _is_within(second, axis, 1)
        ]
        axes.append(fitting[0] if fitting else 0)
        if not fitting:
            refused |= {name for name in (call.weight, call.bias) if name}
    return refused, tuple(axes), idle


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
