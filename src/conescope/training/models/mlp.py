"""A multilayer perceptron."""

from __future__ import annotations

import math
from collections import OrderedDict
from itertools import pairwise

from torch import nn

from conescope.training.models import check_classes, check_layers, widened
from conescope.training.models.norm import AnyNorm, rectified


class MLP(nn.Sequential):
    """Hidden layers of 128 rectified units each on the flattened sample.

    Maps [n, …] to logits [n, classes]; weights start as torch sets them.

    Args:
        shape: the shape of one sample, such as (channels, height, width).
        width: multiplies the number of hidden units.
        classes: number of logits.
        layers: number of hidden layers.
        norm: normalisation before each rectifier.

    Raises:
        RecipeError: if `width`, `classes` or `layers` is no number above 0, or there is no such
            `norm`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        width: float = 1.0,
        classes: int = 10,
        layers: int = 2,
        norm: AnyNorm = "none",
    ):
        check_classes(classes)
        check_layers(layers)
        units = [math.prod(shape), *[widened(128, width)] * layers]
        built: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
        for place, (before, after) in enumerate(pairwise(units), start=1):
            built += rectified(nn.Linear(before, after), f"fc{place}", place, norm)
        built.append((f"fc{layers + 1}", nn.Linear(units[-1], classes)))
        super().__init__(OrderedDict(built))
