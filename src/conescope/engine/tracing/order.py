"""Find and check the place of every sample in every recorded call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from conescope.engine.layers.call import INTERLEAVED, Call, Pull
from conescope.engine.tracing.forward import RoutesChangedError, attempted, different_weights

_LOOSE = 0.1
"""Rounding in any dtype is finer, and different weights differ by a factor of two or more."""

Norms = Sequence[Tensor | None]
"""For each call, the norm of each sample's part of the gradient at its target, [b]."""


def norms_of_samples(
    calls: Sequence[Call], gradients: Sequence[Tensor | None], samples: int
) -> Norms:
    """Return the norms of the parts of gradients that belong to each sample of a batch."""
    everyone = slice(None)
    return [
        None if g is None else call.of_samples(g, everyone).reshape(samples, -1).norm(dim=1)
        for call, g in zip(calls, gradients, strict=True)
    ]


def refuse_exchanged_samples(
    outputs: Tensor, calls: Sequence[Call], cotangent: Tensor, norms: Norms, retain: bool
) -> None:
    """Check by one more backward pass that the model keeps the order of the samples of a batch.

    If the outputs of each sample are weighted by a power of two, so are the gradients in its slice
    of each call, unless the model has changed the order.

    Args:
        outputs: [b, c].
        calls: the recorded calls.
        cotangent: [c].
        norms: of the gradients of cotangent · outputs, summed over the samples.
        retain: whether the graph is needed again.

    Raises:
        RoutesChangedError: if it has.
    """
    weights = different_weights(outputs)
    gradients = torch.autograd.grad(
        outputs,
        [call.target for call in calls],
        weights[:, None] * cotangent,
        retain_graph=retain,
        allow_unused=True,
    )
    gradients = [g if norm is not None else None for norm, g in zip(norms, gradients, strict=True)]
    for norm, found in zip(norms, norms_of_samples(calls, gradients, len(outputs)), strict=True):
        if norm is not None and found is not None:
            expected = norm * weights.to(norm)
            if bool(((found - expected).abs() > _LOOSE * expected).any()):
                raise RoutesChangedError


@dataclass
class Placed:
    """What two samples' gradients tell about the calls.

    Attributes:
        refused: the parameters of calls without an axis that numbers the samples.
        silent: whether some are refused only because no gradient of one sample arrives.
        unused: the numbers of the calls that no output depends on.
        quiet: those of the calls at which all gradients are zero.
    """

    refused: set[str] = field(default_factory=set)
    silent: bool = False
    unused: set[int] = field(default_factory=set)
    quiet: set[int] = field(default_factory=set)


def place_samples(outputs: Tensor, calls: list[Call], departures: Mapping[str, int]) -> Placed:
    """Find the axis that numbers the two samples in each call."""
    if not calls:
        return Placed()
    edges = [call.edge for call in calls]
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(outputs.shape[1], generator=generator, device="cpu").to(outputs)
    try:
        by_sample = [
            torch.autograd.grad(outputs[i] @ cotangent, edges, retain_graph=True, allow_unused=True)
            for i in range(2)
        ]
    except RuntimeError:  # of a checkpoint whose second pass differs
        return Placed({name for call in calls for name in call.names.values()})
    placed = Placed()
    for number, (call, *found) in enumerate(zip(calls, *by_sample, strict=True)):
        gradients = [None if g is None else call.shaped(g) for g in found]
        arrived = [g is not None and bool(g.any()) for g in gradients]
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
        if all(g is None for g in found):
            placed.unused.add(number)
        elif not any(arrived) and not departures.keys() & set(call.names.values()):
            placed.quiet.add(number)
        elif not (fitting and all(arrived)):
            placed.refused |= set(call.names.values())
            placed.silent |= bool(fitting)
        elif (whole := _sum(found)) is not None:
            call.reached = call.count_reached(whole)
    return placed


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
