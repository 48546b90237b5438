"""Why a kernel is not usable: NaN, overflow or no gradient at all, with the place and the cure."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from conescope.engine.failure import shown
from conescope.engine.forward import feedable, forward
from conescope.engine.general import plain_gradients
from conescope.engine.graph import reachable
from conescope.engine.problem import Problem
from conescope.errors import KernelError, ModelError

_BLOCK = 16


def refuse_without_gradient(problem: Problem, layers: Mapping[str, Tensor]) -> None:
    """Raise `ModelError` if the kernel is zero because no output depends on a parameter.

    Args:
        problem: the problem, inside `prepared`.
        layers: its kernels, by layer.
    """
    if any(bool(_decisive(problem, values).any()) for values in layers.values()):
        return
    for block in problem.x.split(_BLOCK):
        found, opaque = reachable(forward(problem.model, feedable(block)), problem.parameters)
        if found or opaque:
            _refuse_underflow(problem)
            return
    names = _some([shown(problem.model, name) for name in problem.parameters])
    raise ModelError(
        f"no output depends on the parameters chosen ({names}), so that the kernel is zero "
        f"everywhere: the forward pass runs under torch.no_grad(), detaches its outputs or leaves "
        f"these parameters out; take that away, or choose others in `params`"
    )


def _refuse_underflow(problem: Problem) -> None:
    """Raise `KernelError` if gradients are so small that their products are zero in float32."""
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


def refuse_not_finite(problem: Problem, layers: Mapping[str, Tensor]) -> None:
    """Raise an error that names the sample whose gradient is NaN or infinite, if there is one.

    Args:
        problem: the problem, inside `prepared`; its weights, inputs and outputs are finite.
        layers: its kernels, by layer.

    Raises:
        ModelError: if a gradient is not finite.
        KernelError: if all gradients are finite, and the kernel overflows.
    """
    if all(_is_finite(_decisive(problem, values)) for values in layers.values()):
        return
    cotangents = problem.cotangents
    for name, samples in (("x", problem.x), ("y", problem.y)):
        for number in range(0 if samples is None else len(samples)):
            assert samples is not None
            for k in range(len(cotangents)):
                one = samples[number : number + 1]
                _check_gradients(problem, one, cotangents.part(k, k + 1), f"{name}[{number}]")
    raise KernelError(
        f"the kernel overflows {str(problem.dtype).removeprefix('torch.')} "
        f"(above {torch.finfo(problem.dtype).max:.2g}), though all gradients are finite; measure "
        f"model.double() on x.double(), or scale the outputs down"
    )


def _check_gradients(problem: Problem, sample: Tensor, cotangent: Tensor, place: str) -> None:
    passes = plain_gradients(
        problem.model, problem.parameters, sample, cotangent, problem.survey.routes.reentrant
    )
    for _, _, gradients in passes:
        for name, gradient in gradients.items():
            if bool(torch.isfinite(gradient).all()):
                continue
            number = place.partition("[")[2].rstrip("]")
            kind = "NaN" if bool(gradient.isnan().any()) else "infinite"
            parameter = shown(problem.model, name)
            where = (
                f"the gradient of sample {number} ({place}) with respect to parameter "
                f"{parameter!r} is {kind}, though its weights and outputs are finite"
            )
            if problem.parameters[name].dtype == torch.float16:
                raise ModelError(
                    f"{where}: float16 overflows above 65,504; measure model.float() on x.float()"
                )
            raise ModelError(
                f"{where}: some operation has no finite derivative there, such as a square root or "
                f"a norm at 0; add a small number under the root, or leave the sample out"
            )


def _decisive(problem: Problem, values: Tensor) -> Tensor:
    """The diagonal if x is y: it is zero, NaN or infinite wherever its row is; else all values."""
    if problem.y is not None:
        return values
    rows = math.isqrt(values.numel())
    return values.view(rows, rows).diagonal()


def _is_finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more}"
