"""The eNTK as its definition says it: nested loops of plain autograd, in float64."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def jacobians(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Parameter name → ∂f_k(x_i)/∂θ, [n, c, p], in float64; frozen parameters are left out."""
    model = copy.deepcopy(model).double()
    x = x.double() if x.is_floating_point() else x
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
                rows[name].append(gradient.flatten())
    return {name: torch.stack(r).reshape(len(x), classes, -1) for name, r in rows.items()}


def kernel(
    model: nn.Module, x: Tensor, y: Tensor | None = None, outputs: str | int = "full"
) -> dict[str, Tensor]:
    """Parameter name → its summand of the kernel, shaped as `Kernel.values`."""
    left = jacobians(model, x)
    right = left if y is None else jacobians(model, y)
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
    """The whole kernel."""
    return torch.stack(list(parts.values())).sum(0)
