"""How far results of two ways of computing the same gradients may be apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from conescope.engine.independence import rounding_of
from conescope.engine.problem import Problem


@dataclass(frozen=True)
class Bounds:
    """The largest differences that are allowed.

    Attributes:
        total: of the whole kernel, relative to its diagonal.
        layer: of the kernel of a layer, relative to its own diagonal.
        least: what is added to that, relative to the diagonal of the whole kernel.
        alone: of gradients of samples alone from those in a batch, relative to their norm.
    """

    total: float
    layer: float
    least: float
    alone: float


_BOUNDS = {
    torch.float64: Bounds(total=1e-11, layer=1e-9, least=1e-11, alone=1e-5),
    torch.float32: Bounds(total=2e-6, layer=1e-4, least=2e-6, alone=0.05),
    torch.float16: Bounds(total=2e-3, layer=1e-2, least=1e-4, alone=0.3),
    torch.bfloat16: Bounds(total=1e-2, layer=5e-2, least=1e-4, alone=0.3),
}
"""By the coarsest dtype. Autograd rounds gradients to their dtype, which rules do not: in half
precision a kernel differs by up to that rounding, however small the layer's share of it is."""


def bounds_of(problem: Problem) -> Bounds:
    """Return the bounds for the coarsest dtype of outputs, parameters and what is between them."""
    survey = problem.survey
    used = {p.dtype for name, p in problem.parameters.items() if survey.route(name) != "unused"}
    known = [torch.finfo(dtype).eps for dtype in {problem.cotangents.like.dtype, *used}]
    coarsest = max(rounding_of(problem.model), *known)
    return next(b for dtype, b in _BOUNDS.items() if coarsest <= torch.finfo(dtype).eps)
