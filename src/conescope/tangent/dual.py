"""Compute with dual numbers: a value with a graph of autograd, and a tangent without one.

A linearised network's forward pass needs the tangents, and its backward pass the graph of the
values. torch's own dual numbers record a graph of the tangents, too; here one pass over the network
gives both, and records one graph only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor


@dataclass(frozen=True)
class Dual:
    """A tensor and its derivative along a direction in weight space.

    Attributes:
        primal: the value, part of autograd's graph.
        tangent: the derivative, of the same shape; None where it vanishes.
    """

    primal: Tensor
    tangent: Tensor | None = None

    def derivative(self) -> Tensor:
        """Return the tangent, as zeros where it vanishes."""
        return torch.zeros_like(self.primal) if self.tangent is None else self.tangent


def call(function: Callable[..., Tensor], *arguments: Dual | None) -> Dual:
    """Apply any differentiable function of tensors; its tangent costs a second evaluation.

    Args:
        function: takes as many tensors as there are arguments, and has no side effects.
        arguments: dual numbers; where one is None, the function gets None.
    """
    primal = function(*(None if a is None else a.primal for a in arguments))
    if all(a is None or a.tangent is None for a in arguments):
        return Dual(primal)
    with torch.no_grad(), fwd.dual_level():
        output = function(*(None if a is None else _torch_dual(a) for a in arguments))
        return Dual(primal, fwd.unpack_dual(output).tangent)


def _torch_dual(dual: Dual) -> Tensor:
    primal = dual.primal.detach()
    return primal if dual.tangent is None else fwd.make_dual(primal, dual.tangent)


def linear(function: Callable[[Tensor], Tensor], x: Dual) -> Dual:
    """Apply a linear function of one tensor, such as an average or a reshaping."""
    if x.tangent is None:
        return Dual(function(x.primal))
    with torch.no_grad():
        tangent = function(x.tangent)
    return Dual(function(x.primal), tangent)


def add(x: Dual, y: Dual) -> Dual:
    """Add two tensors."""
    if x.tangent is None or y.tangent is None or x.tangent.shape != y.tangent.shape:
        return call(torch.add, x, y)
    return Dual(x.primal + y.primal, x.tangent + y.tangent)


def relu(x: Dual, owned: bool) -> Dual:
    """Return max(x, 0), whose derivative at 0 is 0; in place if `owned` (only this reads `x`)."""
    primal = torch.relu_(x.primal) if owned else torch.relu(x.primal)
    if x.tangent is None:
        return Dual(primal)
    with torch.no_grad():
        return Dual(primal, torch.ops.aten.threshold_backward(x.tangent, primal, 0))


def max_pool2d(pool: Callable[[Tensor], tuple[Tensor, Tensor]], x: Dual) -> Dual:
    """Return the largest value of each window, and the tangent at the same place.

    Args:
        pool: returns the largest values and their indices in the image.
        x: images, [n, c, h, w].
    """
    primal, indices = pool(x.primal)
    if x.tangent is None:
        return Dual(primal)
    tangent = x.tangent.flatten(-2).gather(-1, indices.flatten(-2))
    return Dual(primal, tangent.view_as(primal))


def affine(product: Callable[..., Tensor], x: Dual, weight: Dual, bias: Dual | None) -> Dual:
    """Return product(x, weight) + bias; see `affine_tangent`."""
    primal = product(x.primal, weight.primal, None if bias is None else bias.primal)
    return Dual(primal, affine_tangent(product, x, weight, bias))


@torch.no_grad()
def affine_tangent(
    product: Callable[..., Tensor], x: Dual, weight: Dual, bias: Dual | None
) -> Tensor | None:
    """Return the tangent of product(x, weight) + bias, with a product linear in each factor.

    Args:
        product: called with x, a weight and, as third argument, a bias or None.
        x: the input.
        weight: the weight.
        bias: the bias, or None.
    """
    shift = None if bias is None else bias.tangent
    if shift is not None and weight.tangent is None:
        weight = Dual(weight.primal, torch.zeros_like(weight.primal))
    if weight.tangent is None:
        return None if x.tangent is None else product(x.tangent, weight.primal, None)
    tangent = product(x.primal, weight.tangent, shift)
    return tangent if x.tangent is None else tangent.add_(product(x.tangent, weight.primal, None))
