"""A multilayer perceptron."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from conescope.training.models import check_classes, widened


class MLP(nn.Sequential):
    """Two hidden layers of 128 rectified units on the flattened sample.

    Maps [n, …] to logits [n, classes]; weights start as torch sets them.

    Args:
        shape: the shape of one sample, such as (channels, height, width).
        width: multiplies the number of hidden units.
        classes: number of logits.

    Raises:
        RecipeError: if `width` or `classes` is no number above 0.
    """

    def __init__(self, shape: tuple[int, ...], width: float = 1.0, classes: int = 10):
        check_classes(classes)
        hidden = widened(128, width)
        layers: list[tuple[str, nn.Module]] = [
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(math.prod(shape), hidden)),
            ("relu1", nn.ReLU()),
            ("fc2", nn.Linear(hidden, hidden)),
            ("relu2", nn.ReLU()),
            ("fc3", nn.Linear(hidden, classes)),
        ]
        super().__init__(OrderedDict(layers))
