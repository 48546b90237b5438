"""The general route: per-sample gradients of any parameter of any module.

`vmap` over samples where the module allows it; otherwise one plain autograd pass for each sample
and output, which works on whatever autograd can differentiate.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from conescope.entk.independence import attachable

Gradients = dict[str, Tensor]
"""Parameter name → gradients of every sample and cotangent, [b, q, p]."""


def per_sample_gradients(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor, cotangents: Tensor
) -> Gradients:
    """Per-sample gradients by `vmap` if it can follow the module, by the loop otherwise."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            return vmap_gradients(model, parameters, x, cotangents)
    except RuntimeError:
        return loop_gradients(model, parameters, x, cotangents)


def vmap_gradients(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor, cotangents: Tensor
) -> Gradients:
    """Per-sample gradients by `torch.func`.

    Raises:
        RuntimeError: if the module does something that `vmap` cannot follow.
    """

    def project(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return cotangents @ functional_call(model, weights, (sample[None],)).reshape(-1)

    weights = {name: p.detach() for name, p in parameters.items()}
    jacobians = vmap(jacrev(project), in_dims=(None, 0))(weights, x)
    return {name: j.reshape(*j.shape[:2], -1) for name, j in jacobians.items()}


def loop_gradients(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor, cotangents: Tensor
) -> Gradients:
    """Per-sample gradients by one plain autograd pass for each sample and cotangent."""
    rows = {name: p.new_zeros(len(x), len(cotangents), p.numel()) for name, p in parameters.items()}
    for i, sample in enumerate(x):
        with torch.enable_grad():
            projections = cotangents @ model(attachable(sample[None])).reshape(-1)
        for k, projection in enumerate(projections):
            gradients = _gradients(projection, parameters)
            for name, gradient in gradients.items():
                rows[name][i, k] = gradient.to_dense().flatten()
    return rows


def _gradients(scalar: Tensor, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """∂scalar/∂θ, by `backward`: re-entrant checkpoints refuse `autograd.grad`."""
    kept = {name: p.grad for name, p in parameters.items()}
    try:
        for p in parameters.values():
            p.grad = None
        if scalar.requires_grad:
            scalar.backward(retain_graph=True)
        return {name: p.grad for name, p in parameters.items() if p.grad is not None}
    finally:
        for name, p in parameters.items():
            p.grad = kept[name]
