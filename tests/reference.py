"""The eNTK as its definition says it: nested loops of plain autograd, multiplied in float64.

`assert_matches_reference(model, x)` is the test of an engine: `cs.entk` has to give this kernel.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

import conescope as cs


def jacobians(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return name → ∂f_k(x_i)/∂θ, [n, c, p], in float64, for parameters that are not frozen.

    The gradients are those of the model in its own dtype, of each sample alone.
    """
    model = copy.deepcopy(model)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    classes = 0
    for i in range(len(x)):
        sample = x[i : i + 1].clone()
        if sample.is_floating_point():
            sample.requires_grad_()  # a re-entrant checkpoint loses its gradients otherwise
        output = model(sample).reshape(-1)
        classes = len(output)
        for k in range(classes):
            model.zero_grad(set_to_none=True)
            output[k].backward(retain_graph=True)
            for name, p in parameters.items():
                gradient = torch.zeros_like(p) if p.grad is None else p.grad
                rows[name].append(gradient.flatten().double())
    return {name: torch.stack(r).reshape(len(x), classes, -1) for name, r in rows.items()}


def kernel(
    model: nn.Module, x: Tensor, y: Tensor | None = None, outputs: str | int = "full"
) -> dict[str, Tensor]:
    """Return parameter name → its summand of the kernel, shaped as `Kernel.values`."""
    left = jacobians(model, x)
    return products(left, left if y is None else jacobians(model, y), outputs)


def products(
    left: dict[str, Tensor], right: dict[str, Tensor], outputs: str | int
) -> dict[str, Tensor]:
    """Return parameter name → its summand of the kernel, from what `jacobians` returns."""
    parts = {}
    for name in left:
        full = torch.einsum("ikp,jlp->ikjl", left[name], right[name])
        if outputs == "full":
            parts[name] = full
        elif outputs == "trace":
            parts[name] = torch.einsum("ikjk->ij", full)
        elif outputs == "sum":
            parts[name] = full.sum(dim=(1, 3))
        else:
            parts[name] = full[:, outputs, :, outputs]
    return parts


def total(parts: dict[str, Tensor]) -> Tensor:
    """Add up the summands of a kernel."""
    return torch.stack(list(parts.values())).sum(0)


def assert_matches_reference(
    model: nn.Module, x: Tensor, y: Tensor | None = None, **options: Any
) -> None:
    """Fail unless `cs.entk`, with these options of its own, gives the kernel of the nested loops.

    Allowed are errors of 1e-10 of the largest diagonal entry in float64, and of 1e-6 of
    √(K_ii K_jj) in float32.
    """
    left = jacobians(model, x)
    right = left if y is None else jacobians(model, y)
    assert_matches_jacobians(left, right, model, x, y, **options)


def assert_matches_jacobians(
    left: dict[str, Tensor],
    right: dict[str, Tensor],
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    **options: Any,
) -> None:
    """Fail as `assert_matches_reference` does, given the Jacobians of x and those of y."""
    outputs = options.get("outputs", "trace")
    expected = total(products(left, right, outputs))
    sides = [left] if y is None else [left, right]
    diagonals = [_diagonal(total(products(side, side, outputs))) for side in sides]
    assert_exact(cs.entk(model, x, y, **options).values, expected, diagonals)


def assert_exact(values: Tensor, expected: Tensor, diagonals: list[Tensor] | None = None) -> None:
    """Fail unless kernels agree as `assert_matches_reference` demands.

    Args:
        values: the kernel that is tested.
        expected: the right one, in float64.
        diagonals: of the kernels of x and of y; None if `expected` is symmetric.
    """
    assert values.shape == expected.shape
    left, *right = diagonals or [_diagonal(expected)]
    sizes = torch.outer(left, right[0] if right else left).clamp_min(0).sqrt()
    error = (values.double() - expected.double()).abs().reshape(sizes.shape)
    if values.dtype == torch.float64:
        allowed = torch.full_like(
            error, 1e-10 * float(max(left.max(), *(d.max() for d in right), 0))
        )
    else:
        allowed = 1e-6 * sizes
    worst = float((error / allowed.clamp_min(1e-300)).max())
    assert worst <= 1, f"{worst:.3g} times the error that is allowed"


def _diagonal(symmetric: Tensor) -> Tensor:
    rows = math.isqrt(symmetric.numel())
    return symmetric.reshape(rows, rows).diagonal().double()


def assert_near(values: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Fail unless tensors agree to a tolerance, relative to the largest entry."""
    scale = float(expected.abs().max())
    torch.testing.assert_close(values, expected.to(values), rtol=0, atol=tolerance * scale)


def sketched(rows: Tensor, left: Any, right: Any) -> Tensor:
    """Return count sketches of matrices [n, rows, columns], entry by entry, before they are scaled.

    Args:
        rows: the matrices.
        left: the engine's hashes of the rows, with `slots` and `signs` of each block.
        right: those of the columns.
    """
    width = left.width
    found = []
    for block in range(len(left.slots)):
        slots = (left.slots[block][:, None] + right.slots[block]) % width
        signs = left.signs[block].double()[:, None] * right.signs[block].double()
        one_hot = torch.nn.functional.one_hot(slots.long().flatten(), width).double()
        found.append((rows.double() * signs).flatten(1) @ one_hot)
    return torch.cat(found, dim=1)
