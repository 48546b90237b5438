"""Say why a kernel is NaN, infinite or zero, with the place and the cure."""

from __future__ import annotations

import math
from typing import NoReturn

import torch
from torch import Tensor

from conescope.engine.general import plain_gradients
from conescope.engine.problem import Problem
from conescope.engine.tracing.forward import feedable, forward, reachable, shown
from conescope.errors import KernelError, ModelError

_BLOCK = 16


def refuse_without_gradient(problem: Problem) -> None:
    """Raise an error if a kernel is zero everywhere for another reason than gradients of zero.

    Args:
        problem: the problem, inside `prepared`.

    Raises:
        ModelError: if no output depends on a parameter.
        KernelError: if the products of the gradients underflow.
    """
    fixed = problem.roots.fixed if problem.roots is not None else set()
    moved = {name: p for name, p in problem.parameters.items() if name not in fixed}
    for block in problem.x.split(_BLOCK):
        found, opaque = reachable(forward(problem.model, feedable(block)), moved)
        if found or opaque:
            _refuse_underflow(problem)
            return
    names = _some([shown(problem.model, name) for name in moved])
    raise ModelError(
        f"no output depends on the parameters chosen ({names}), so that the kernel is zero "
        f"everywhere: the forward pass runs under torch.no_grad(), detaches its outputs or leaves "
        f"these parameters out; take that away, or choose others in `params`"
    )


def _refuse_underflow(problem: Problem) -> None:
    """Raise `KernelError` if gradients are so small that their products are zero."""
    largest = 0.0
    passes = plain_gradients(
        problem.model, problem.parameters, problem.x[:1], problem.cotangents.part(0, 1),
        problem.survey.routes.reentrant,
    )  # fmt: skip
    for _, _, gradients in passes:
        largest = max([largest, *(float(g.abs().max()) for g in gradients.values())])
    if 0.0 < largest < math.sqrt(torch.finfo(problem.dtype).tiny):
        kind = str(problem.dtype).removeprefix("torch.")
        raise KernelError(
            f"gradients of about {largest:.0e} have products that underflow {kind}; measure "
            f"model.double() on x.double(), or scale the outputs up"
        )


def raise_not_finite(problem: Problem) -> NoReturn:
    """Say why a kernel is NaN or infinite, and which sample's gradient is, if one is.

    Args:
        problem: the problem, inside `prepared`; its weights, inputs and outputs are finite.

    Raises:
        ModelError: if a gradient is not finite.
        KernelError: if all gradients are finite, and the kernel overflows.
    """
    cotangents = problem.cotangents
    for name, samples in (("x", problem.x), ("y", problem.y)):
        for number, sample in enumerate(() if samples is None else samples.split(1)):
            for k in range(len(cotangents)):
                _check_gradients(problem, sample, cotangents.part(k, k + 1), name, number)
    raise KernelError(
        f"the kernel overflows {str(problem.dtype).removeprefix('torch.')} "
        f"(above {torch.finfo(problem.dtype).max:.2g}), though all gradients are finite; measure "
        f"model.double() on x.double(), or scale the outputs down"
    )


def _check_gradients(
    problem: Problem, sample: Tensor, cotangent: Tensor, name: str, number: int
) -> None:
    passes = plain_gradients(
        problem.model, problem.parameters, sample, cotangent, problem.survey.routes.reentrant
    )
    for _, _, gradients in passes:
        for parameter, gradient in gradients.items():
            if bool(torch.isfinite(gradient).all()):
                continue
            kind = "NaN" if bool(gradient.isnan().any()) else "infinite"
            where = (
                f"the gradient of sample {number} ({name}[{number}]) with respect to parameter "
                f"{shown(problem.model, parameter)!r} is {kind}, though its weights and outputs "
                f"are finite"
            )
            if problem.parameters[parameter].dtype == torch.float16:
                raise ModelError(
                    f"{where}: float16 overflows above 65,504; measure model.float() on x.float()"
                )
            raise ModelError(
                f"{where}: some operation has no finite derivative there, such as a square root or "
                f"a norm at 0; add a small number under the root, or leave the sample out"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
