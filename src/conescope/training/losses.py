"""Losses: from logits and labels to what a training makes smaller, by their names in a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from conescope.training.recipe_fields import LossName

Loss = Callable[..., Tensor]
"""A function of logits [b, c] or [b, c, T] and labels [b] or [b, T], and of `reduction`."""


def squared_error(
    logits: Tensor, labels: Tensor, *, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Return half the squared distance of the logits to the one-hot labels.

    Args:
        logits: [b, c], or [b, c, T] of T positions.
        labels: int64, [b] or [b, T].
        reduction: the mean over all labels, or the sum.
    """
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))  # autocast lowers logits
    targets = F.one_hot(labels, logits.shape[1]).movedim(-1, 1).to(exact.dtype)
    halves = (exact - targets).square().sum(dim=1) / 2
    return halves.mean() if reduction == "mean" else halves.sum()


LOSSES: Mapping[LossName, Loss] = MappingProxyType(
    {"cross_entropy": F.cross_entropy, "squared": squared_error}
)
"""Name in a recipe → the loss."""

UNITS: Mapping[LossName, str] = MappingProxyType(
    {
        "cross_entropy": "in nats",
        "squared": "half the squared distance of the logits to the one-hot label",
    }
)
"""Name in a recipe → what its values are."""


def loss_of_guessing(name: LossName, classes: int) -> float:
    """Return the loss of the best constant logits where all classes are as frequent."""
    return math.log(classes) if name == "cross_entropy" else (1 - 1 / classes) / 2
