"""The float64 reference of `conescope.estimate_entk`: the kernel of each random cotangent.

Plain autograd takes one sample at a time. Gradients of a block of parameters exist at once, and
their products are summed in float64, so that memory stays bounded whatever the model's size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_COLUMNS = 2**20
"""So many columns of a block are turned into float64 at a time."""


def signs(draws: int, outputs: int, seed: int = 0) -> Tensor:
    """The cotangents [r, c] of ±1 that `estimate_entk` draws, in float64.

    conescope has no public call for them, so this is the one place that repeats
    `conescope.engine.estimate`: the same generator, the same order.
    """
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randint(0, 2, (draws, outputs), generator=generator).double() - 1


@dataclass(frozen=True)
class _Piece:
    """Elements `start` to `stop` of a parameter."""

    parameter: nn.Parameter
    start: int
    stop: int


def draw_kernels(model: nn.Module, x: Tensor, cotangents: Tensor, memory: int) -> Tensor:
    """The kernel ⟨∂(v·f)(x_i)/∂θ, ∂(v·f)(x_j)/∂θ⟩ of every cotangent v.

    The per-sample gradients have the model's dtype, their products are float64.

    Args:
        model: in evaluation mode; parameters that are frozen do not count, tied ones count once.
        x: n samples.
        cotangents: [r, c].
        memory: bytes that the gradients of a block may take.

    Returns:
        [r, n, n] in float64.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    numbers = memory // (len(x) * len(cotangents) * parameters[0].element_size())
    kernels = torch.zeros(len(cotangents), len(x), len(x), dtype=torch.float64)
    for block in _blocks(parameters, max(1, numbers)):
        kernels += _products(_gradients(model, x, cotangents, block))
    return kernels


def _products(rows: Tensor) -> Tensor:
    """The products [r, n, n] in float64 of gradients [r, n, p]."""
    parts = (part.double() for part in rows.split(_COLUMNS, dim=2))
    return sum(exact @ exact.mT for exact in parts)


def _blocks(parameters: list[nn.Parameter], most: int) -> Iterator[list[_Piece]]:
    """Cut the parameters into blocks of at most so many elements."""
    block: list[_Piece] = []
    room = most
    for p in parameters:
        start = 0
        while start < p.numel():
            stop = min(p.numel(), start + room)
            block.append(_Piece(p, start, stop))
            room -= stop - start
            start = stop
            if not room:
                yield block
                block, room = [], most
    if block:
        yield block


def _gradients(model: nn.Module, x: Tensor, cotangents: Tensor, block: list[_Piece]) -> Tensor:
    """The gradients [r, n, p] of every cotangent and sample for a block's p elements."""
    columns = sum(piece.stop - piece.start for piece in block)
    first = block[0].parameter
    rows = first.new_zeros(len(cotangents), len(x), columns, requires_grad=False)
    wanted = [piece.parameter for piece in block]
    for i in range(len(x)):
        outputs = model(x[i : i + 1]).flatten()
        for k, cotangent in enumerate(cotangents.to(outputs)):
            found = torch.autograd.grad(
                outputs, wanted, cotangent, retain_graph=True, allow_unused=True
            )
            place = 0
            for piece, gradient in zip(block, found, strict=True):
                size = piece.stop - piece.start
                if gradient is not None:
                    rows[k, i, place : place + size] = gradient.flatten()[piece.start : piece.stop]
                place += size
    return rows


def deviation(kernels: Tensor, reference: Tensor) -> float:
    """The largest |K_ij − K*_ij| of any cotangent, relative to the mean diagonal of its K*."""
    scale = reference.diagonal(dim1=1, dim2=2).mean(dim=1)
    return float(((kernels.double() - reference).abs().amax(dim=(1, 2)) / scale).max())


def gram_error(features: Tensor, reference: Tensor) -> float:
    """‖FFᵀ − K*‖ / ‖K*‖ in the Frobenius norm, of features [n, dim] and one kernel [n, n]."""
    gram = features.double() @ features.double().T
    return float((gram - reference).norm() / reference.norm())
