"""Embeddings, linear maps of one-hot vectors that are never written out, and sums of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from conescope.engine.compute.shape import Shape
from conescope.engine.layers.call import OuterCall, Recording, intercepts


@dataclass
class EmbeddingCall(OuterCall):
    """Rows of W by token; a feature is the token itself, which stands for a one-hot vector."""

    ties = True
    vocabulary: int = 0
    width: int = 0
    padding_idx: int | None = None

    @property
    def order(self) -> str:
        return "ao"

    def fits(self, samples: int, axis: int) -> bool:
        shape = self.source.shape
        if axis == 1:
            return len(shape) > 1 and shape[1] == samples
        return len(shape) > 0 and shape[0] % samples == 0

    @property
    def shape(self) -> Shape:
        positions = self.source.numel() // self.samples
        return Shape(1, self.width, self.vocabulary, positions, sparse=True)

    def write_features(self, out: Tensor, start: int, stop: int) -> None:
        out[:, 0, :, 0] = self._tokens()[start:stop]

    def cotangent(self, g: Tensor) -> Tensor:
        g = self.samples_first(g).reshape(self.samples, -1, self.width)
        if self.padding_idx is not None:
            g = g.masked_fill((self._tokens() == self.padding_idx)[..., None], 0.0)
        return g.mT[:, None]

    def arranged(self, gradients: Tensor) -> Tensor:
        return gradients[:, 0].mT.flatten(1)

    def weight_rows(self, g: Tensor) -> Tensor:
        cotangent = self.cotangent(g)[:, 0].mT
        rows = cotangent.new_zeros(self.samples, self.vocabulary, self.width)
        index = self._tokens()[..., None].expand_as(cotangent)
        return rows.scatter_add_(1, index, cotangent).flatten(1)

    def _tokens(self) -> Tensor:
        """Return the tokens as [b, T]."""
        return self.samples_first(self.source).reshape(self.samples, -1)


@dataclass
class BagCall(EmbeddingCall):
    """Weighted sums of rows of W, one for each bag of tokens.

    Attributes:
        shares: the weight of each token in its sum, [bags, tokens of a bag].
    """

    shares: Tensor = field(kw_only=True)

    def fits(self, samples: int, axis: int) -> bool:
        return axis != 1 and super().fits(samples, axis)

    @property
    def cotangent_elements(self) -> int:
        return len(self.source) // self.samples * self.width

    def cotangent(self, g: Tensor) -> Tensor:
        return super().cotangent(g[:, None] * self.shares[..., None].to(g.dtype))


@intercepts(F.embedding)
def _embedding(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None or scale_grad_by_freq:
        recorder.note_uncovered(weight)
        return F.embedding(
            input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
        )
    y = F.embedding(input, recorder.detached(weight), padding_idx)
    if padding_idx is not None and padding_idx < 0:
        padding_idx += len(weight)
    vocabulary, width = weight.shape
    return recorder.keep(
        EmbeddingCall, weight, None, input, y,
        vocabulary=vocabulary, width=width, padding_idx=padding_idx,
    )  # fmt: skip


@intercepts(Tensor.__getitem__)
def _getitem(recorder: Recording, table: Tensor, index: Any) -> Tensor:
    one = index[0] if isinstance(index, tuple) and len(index) == 1 else index
    if not isinstance(one, Tensor) or one.dtype in (torch.bool, torch.uint8):
        recorder.note_uncovered(table)
        return table[index]
    return _rows(recorder, table, one)


@intercepts(torch.index_select, Tensor.index_select)
def _index_select(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    dim: int,
    index: Tensor,
) -> Tensor:
    if dim not in (0, -input.dim()):
        recorder.note_uncovered(input)
        return input.index_select(dim, index)
    return _rows(recorder, input, index)


def _rows(recorder: Recording, table: Tensor, index: Tensor) -> Tensor:
    """Return slices of a table along its first axis, [*index, ...], as an embedding."""
    with recorder:
        matrix = table.flatten(1) if table.dim() > 1 else table.unsqueeze(1)
        rows = F.embedding(torch.where(index < 0, index + len(table), index), matrix)
        return rows.reshape(*index.shape, *table.shape[1:])


@intercepts(F.embedding_bag)
def _embedding_bag(
    recorder: Recording,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    rest = max_norm, norm_type, scale_grad_by_freq, mode, sparse
    last = include_last_offset, padding_idx
    covered = max_norm is None and not scale_grad_by_freq and mode in ("sum", "mean")
    if not covered or input.dim() != 2 or recorder.knows(per_sample_weights):
        recorder.note_uncovered(weight, per_sample_weights)
        return F.embedding_bag(input, weight, offsets, *rest, per_sample_weights, *last)
    y = F.embedding_bag(input, recorder.detached(weight), None, *rest, per_sample_weights, *last)
    vocabulary, width = weight.shape
    if padding_idx is not None and padding_idx < 0:
        padding_idx += vocabulary
    shares = torch.ones_like(input, dtype=weight.dtype)
    if per_sample_weights is not None:
        shares = per_sample_weights.detach()
    elif mode == "mean":
        counted = shares if padding_idx is None else (input != padding_idx).to(weight.dtype)
        shares = shares / counted.sum(dim=1, keepdim=True).clamp_min(1)
    return recorder.keep(
        BagCall, weight, None, input, y,
        vocabulary=vocabulary, width=width, padding_idx=padding_idx, shares=shares,
    )  # fmt: skip
