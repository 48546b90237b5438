"""The self-check: entries of a small kernel against plain autograd, before a large one is made."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from conescope.entk.general import loop_gradients
from conescope.entk.problem import Problem
from conescope.entk.routes import only_requires_grad

_TOLERANCE = {torch.float64: 1e-6}
_FEW = 2**20
_GROUPS = 4
"""Into about so many groups go parameters of more than these elements; each costs a pass."""
_COARSE = 1e-2
"""Relative to the diagonal; in float32, one rectifier that flips moves a row by about 1e-3."""


def sample_problem(problem: Problem) -> Problem:
    """The same problem for two of its samples and one direction of its outputs, drawn at random.

    The draw is the same each time, so that a kernel is, too.
    """
    generator = torch.Generator().manual_seed(len(problem.x))
    chosen = torch.randint(len(problem.x), (2,), generator=generator).to(problem.x.device)
    direction = torch.randn(1, problem.directions.shape[1], generator=generator)
    return dataclasses.replace(
        problem,
        x=problem.x[chosen],
        y=None,
        outputs="trace",
        directions=direction.to(problem.directions),
    )


def agrees_with_autograd(problem: Problem, values: Tensor) -> bool:
    """Whether the kernel of a `sample_problem` is that of plain autograd."""
    expected = torch.zeros_like(values, dtype=torch.float64)
    for group in _groups(problem.parameters):
        with only_requires_grad(problem.model, group):
            rows = loop_gradients(problem.model, group, problem.x, problem.directions)
        for row in rows.values():
            jacobian = row[:, 0].double()
            expected += jacobian @ jacobian.T
    tolerance = _TOLERANCE.get(values.dtype, _COARSE) * float(expected.diagonal().max())
    return bool(((values.double() - expected).abs() <= tolerance).all())


def _groups(parameters: Mapping[str, nn.Parameter]) -> Iterator[dict[str, nn.Parameter]]:
    """The parameters, some at a time: gradients of all are more than a kernel needs to hold."""
    most = max(_FEW, sum(p.numel() for p in parameters.values()) // _GROUPS)
    group: dict[str, nn.Parameter] = {}
    for name, p in parameters.items():
        if group and sum(q.numel() for q in group.values()) + p.numel() > most:
            yield group
            group = {}
        group[name] = p
    yield group
