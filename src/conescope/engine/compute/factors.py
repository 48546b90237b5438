"""Weights whose per-sample gradient is a sum of outer products over positions, Σ_t G[t] ⊗ A[t].

G are the cotangents of an operation's output, A are its features, that is, its input. Linear
layers, convolutions and embeddings have such weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from conescope.engine.compute.products import (
    Memory,
    Scratch,
    multiply_batch,
)
from conescope.engine.compute.shape import Shape

FEATURE_ELEMENTS = 2**21
"""About so many elements of features are written out at once."""
FEW_COTANGENTS = 3
"""Products serve more cotangents better than convolutions do: features are written only once."""

Places = Sequence[tuple[slice, Tensor]]
"""Some of the cotangents, and the tensor that takes their gradients; several together take all."""


class Use(Protocol):
    """One use of the weight by an operation, for a block of samples.

    Attributes:
        source: what the features are written from.
    """

    source: Tensor

    @property
    def shape(self) -> Shape:
        """The sizes of the weight in this use."""
        ...

    def write_features(self, out: Tensor, start: int, stop: int) -> None:
        """Write the features of samples start … stop − 1 to `out`, [stop − start, g, T, a].

        Tokens are written as integers, with a = 1.
        """

    def gradients(self, cotangent: Tensor) -> Tensor:
        """Return the gradients of some outputs' weights, [b, g, o′, a], from [b, g, o′, T]."""
        ...


class Factors:
    """The cotangents and features of a weight, for n samples and q cotangents.

    Args:
        shape: the sizes of the weight.
        samples: n.
        cotangents: q.
        allocate: makes the tensor of cotangents, [n, q, g, o, T], from its shape.
    """

    def __init__(
        self,
        shape: Shape,
        samples: int,
        cotangents: int,
        allocate: Callable[[tuple[int, ...]], Tensor],
    ) -> None:
        self.shape = shape
        self.features = Features(shape)
        self.samples = samples
        self.cotangents = allocate(
            (samples, cotangents, shape.groups, shape.outputs, shape.positions)
        )

    @property
    def device(self) -> torch.device:
        """Where the factors are."""
        return self.cotangents.device

    def write_gradients(
        self, outputs: slice, places: Places, scratch: Scratch, known: Tensor | None = None
    ) -> None:
        """Write the per-sample gradients of some outputs' weights.

        Args:
            outputs: which outputs, o′ of them.
            places: where the gradients of some cotangents go, [n, q′, g, o′, a].
            scratch: buffers.
            known: the features of all samples, where they have been written before.
        """
        if self.by_convolution:
            for cotangents, rows in places:
                self._convolve(outputs, cotangents, rows)
            return
        n, _, g, _, t = self.cotangents.shape
        a = self.features.width
        step = n if known is not None else max(1, FEATURE_ELEMENTS // (g * a * t))
        for start in range(0, n, step):
            part = slice(start, min(n, start + step))
            features = known
            if features is None:
                features = self.features.write(part, self.cotangents, scratch, "features")
            for numbers, rows in places:
                _, q, _, o, _ = rows.shape
                cotangents = self.cotangents[part, numbers, :, outputs]
                if g == 1:
                    left = cotangents.reshape(-1, q * o, t)
                    multiply_batch(rows[part].view(-1, q * o, a), left, features[:, 0])
                else:
                    rows[part] = cotangents @ features[:, None]

    @property
    def by_convolution(self) -> bool:
        """Whether convolutions form the gradients, one cotangent at a time, without features."""
        return self.cotangents.shape[1] <= min(self.shape.convolved, FEW_COTANGENTS)

    def _convolve(self, outputs: slice, numbers: slice, rows: Tensor) -> None:
        inputs = self.features.inputs
        cotangents = self.cotangents[:, numbers, :, outputs]
        if rows.shape[-1] > inputs:
            rows[..., inputs] = cotangents.sum(dim=-1)
        for block, uses in self.features.blocks:
            for k in range(rows.shape[1]):
                for number, use in enumerate(uses):
                    cotangent = cotangents[block, k, ..., self.features.spans[number]]
                    place = rows[block, k, ..., :inputs]
                    add = place.add_ if number else place.copy_
                    add(use.gradients(cotangent))

    def place(self, use: int, block: slice, cotangent: int) -> Tensor:
        """Return where a cotangent at the output of one use belongs, [b, g, o, T]."""
        return self.cotangents[block, cotangent, :, :, self.features.spans[use]]


class Features:
    """The features of many samples, kept block by block and written out where they are needed.

    Args:
        shape: the sizes of the weight.
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.width = 1 if shape.sparse else shape.inputs
        self.spans: list[slice] = []
        self.blocks: list[tuple[slice, Sequence[Use]]] = []

    def keep_in(self, store: Memory) -> None:
        """Move what the uses of the last block hold to where it waits for the products."""
        for use in self.blocks[-1][1]:
            use.source = store.keep(use.source)

    def append(self, block: slice, uses: Sequence[Use]) -> None:
        """Take in the uses of the weight for a block of samples."""
        self.blocks.append((block, uses))
        ends = list(itertools.accumulate(use.shape.positions for use in uses))
        self.spans = [slice(a, b) for a, b in zip([0, *ends], ends, strict=False)]

    @property
    def elements(self) -> int:
        """Numbers that a sample's features take when they are written out."""
        return self.shape.features

    @property
    def inputs(self) -> int:
        """The number of features without that of the bias."""
        return self.width if self.shape.sparse else self.blocks[0][1][0].shape.inputs

    def write(self, samples: slice, like: Tensor, scratch: Scratch, use: str) -> Tensor:
        """Return features [b, g, T, a], valid until the scratch is taken for the same use."""
        start, stop = samples.start, samples.stop
        if self.shape.sparse:
            use, like = f"{use}, tokens", like.new_empty(0, dtype=torch.int64)
        shape = (stop - start, self.shape.groups, self.shape.positions, self.width)
        out = scratch.take(use, shape, like)
        inputs = self.inputs
        out[..., inputs:] = 1.0  # the bias's feature
        for block, uses in self.blocks:
            first, last = max(start, block.start), min(stop, block.stop)
            if first < last:
                for span, operation in zip(self.spans, uses, strict=True):
                    part = out[first - start : last - start, :, span, :inputs]
                    operation.write_features(part, first - block.start, last - block.start)
        return out
