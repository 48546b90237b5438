"""Linear maps: `F.linear`, and products of matrices with a parameter on the right."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conescope.engine.compute.shape import Shape
from conescope.engine.layers.call import (
    Interception,
    OuterCall,
    Recording,
    RoutesChangedError,
    intercepts,
)
from conescope.engine.layers.contraction import added, contracted

_FEW = 4
"""Positions that gradients reach are worth picking out if all are so many times as many."""


@dataclass
class LinearCall(OuterCall):
    """y = W x + b over the last axis; every other axis beside the samples is a position.

    Attributes:
        index: the positions that gradients reach, [b, reached], once they are known.
    """

    ties = True
    out_features: int = 0
    index: Tensor | None = None

    def fits(self, samples: int, axis: int) -> bool:
        shape = self.source.shape
        if axis == 1:
            return len(shape) > 2 and shape[1] == samples
        return len(shape) > 1 and shape[0] % samples == 0

    @property
    def shape(self) -> Shape:
        positions = self._positions if self.reached is None else self.reached
        return Shape(1, self.out_features, self.source.shape[-1], positions)

    @property
    def cotangent_elements(self) -> int:
        return self._positions * self.out_features

    @property
    def kept(self) -> int:
        return self.shape.positions * self.source.shape[-1]

    def count_reached(self, g: Tensor) -> int | None:
        most = int(self._vectors(g).any(dim=-1).sum(dim=1).max())
        return most if 0 < _FEW * most <= self._positions else None

    def write_features(self, out: Tensor, start: int, stop: int) -> None:
        vectors = self._vectors(self.source) if self.index is None else self.source
        out[:, 0] = vectors[start:stop]

    def cotangent(self, g: Tensor) -> Tensor:
        vectors = self._vectors(g)
        if self.reached is not None:
            vectors = self._picked(vectors, self.reached)
        return vectors.mT[:, None]

    @property
    def _positions(self) -> int:
        return math.prod(self.source.shape[:-1]) // self.samples

    def _vectors(self, tensor: Tensor) -> Tensor:
        return self.samples_first(tensor).reshape(self.samples, -1, tensor.shape[-1])

    def _picked(self, vectors: Tensor, most: int) -> Tensor:
        """Return the rows of [b, T, o] that are not zero, [b, reached, o].

        The features of all other positions are dropped.

        Raises:
            RoutesChangedError: if gradients reach other positions.
        """
        nonzero = vectors.any(dim=-1)
        if self.index is None:
            first = nonzero.byte().sort(dim=1, descending=True, stable=True).indices
            index = first[:, :most].sort(dim=1).values
            self.source = _rows(self._vectors(self.source), index)
            self.index = index
        if bool((nonzero.gather(1, self.index).sum(dim=1) < nonzero.sum(dim=1)).any()):
            raise RoutesChangedError
        return _rows(vectors, self.index)


def _rows(vectors: Tensor, index: Tensor) -> Tensor:
    return vectors.gather(1, index[..., None].expand(-1, -1, vectors.shape[-1]))


@dataclass
class ProductCall(LinearCall):
    """y = x W + b, with W the transpose of a linear map's weight."""

    @property
    def order(self) -> str:
        return "ao"

    def arranged(self, gradients: Tensor) -> Tensor:
        return gradients[:, 0].mT.flatten(1)


@intercepts(F.linear)
def _linear(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
) -> Tensor:
    recorder.note_uncovered(input)
    if weight.dim() == 1:
        rest = {} if bias is None else {"bias": bias}
        recorder.note_uncovered(bias)
        return contracted(recorder, F.linear, input, weight, **rest)
    y = F.linear(input, recorder.detached(weight), recorder.detached(bias))
    matrix = recorder.turned(weight)
    if matrix is not None:
        return recorder.keep(ProductCall, matrix, bias, input, y, out_features=len(weight))
    return recorder.keep(LinearCall, weight, bias, input, y, out_features=len(weight))


@intercepts(F.bilinear)
def _bilinear(
    recorder: Recording, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    if torch.is_autocast_enabled(input1.device.type):  # which would round the products
        recorder.note_uncovered(input1, input2, weight, bias)
        return F.bilinear(input1, input2, weight, bias)
    with recorder:
        products = input1[..., None] * input2[..., None, :]
        return F.linear(products.flatten(-2), weight.flatten(1), bias)


def _product(operation: Callable[..., Tensor]) -> Interception:
    def multiply(
        recorder: Recording,
        input: Tensor,  # noqa: A002
        other: Tensor | None = None,
        *,
        mat2: Tensor | None = None,
        vec: Tensor | None = None,
        **rest: Any,
    ) -> Tensor:
        weight = next(t for t in (other, mat2, vec) if t is not None)
        if rest or input.dim() < 2 or weight.dim() != 2 or not recorder.knows(weight):
            return contracted(recorder, operation, input, weight, **rest)
        recorder.note_uncovered(input)
        y = operation(input, recorder.detached(weight))
        return _keep_product(recorder, weight, None, input, y)

    return multiply


intercepts(torch.matmul, Tensor.matmul)(_product(torch.matmul))
intercepts(torch.mm, Tensor.mm)(_product(torch.mm))
intercepts(torch.bmm, Tensor.bmm)(_product(torch.bmm))
intercepts(torch.mv, Tensor.mv)(_product(torch.mv))


@intercepts(torch.addmm, Tensor.addmm)
def _added_product(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    mat1: Tensor,
    mat2: Tensor,
    **rest: Any,
) -> Tensor:
    bias = input if input.shape == mat2.shape[1:] else None
    if rest or not recorder.knows(mat2) or (bias is None and recorder.knows(input)):
        return added(recorder, torch.addmm, input, mat1, mat2, **rest)
    recorder.note_uncovered(mat1)
    y = torch.addmm(recorder.detached(input), mat1, recorder.detached(mat2))
    return _keep_product(recorder, mat2, bias, mat1, y)


def _keep_product(
    recorder: Recording, weight: Tensor, bias: Tensor | None, x: Tensor, y: Tensor
) -> Tensor:
    """Record y = x W + b, as a linear map if W is the transpose of a matrix."""
    matrix, outputs = recorder.turned(weight), weight.shape[1]
    if matrix is not None:
        return recorder.keep(LinearCall, matrix, bias, x, y, out_features=outputs)
    return recorder.keep(ProductCall, weight, bias, x, y, out_features=outputs)
