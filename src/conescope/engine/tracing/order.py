"""Check that a model keeps the order of the samples of a batch in every recorded call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from conescope.engine.layers.call import Call
from conescope.engine.tracing.forward import RoutesChangedError, different_weights

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
