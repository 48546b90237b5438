"""A small convolutional network for images of any size: a recipe's default."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from conescope.errors import RecipeError
from conescope.training.models import check_classes, widened


class CNN(nn.Sequential):
    """Two 3 × 3 convolutions (16, 32 channels), each pooled by 2, then 64-`classes` units.

    Maps [n, channels, height, width] to logits [n, classes]; weights start as torch sets them.
    On 8 × 8 grey images, 13,706 parameters at width 1.

    Args:
        shape: (channels, height, width) of the images; height and width at least 4.
        width: multiplies every number of channels and hidden units.
        classes: number of logits.

    Raises:
        RecipeError: if the samples are no images or too small ones, or `width` or `classes` is no
            number above 0.
    """

    def __init__(self, shape: tuple[int, ...], width: float = 1.0, classes: int = 10):
        check_classes(classes)
        if len(shape) != 3:
            raise RecipeError(
                f"model cnn needs images [channels, height, width], and these samples have shape "
                f"{tuple(shape)}; choose model mlp, which takes any"
            )
        channels, height, columns = shape
        if min(height, columns) < 4:
            raise RecipeError(
                f"model cnn needs images of at least 4 × 4, not {height} × {columns}; use mlp"
            )
        c1, c2, hidden = (widened(units, width) for units in (16, 32, 64))
        layers: list[tuple[str, nn.Module]] = [
            ("conv1", nn.Conv2d(channels, c1, kernel_size=3, padding=1)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(c1, c2, kernel_size=3, padding=1)),
            ("relu2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(c2 * (height // 4) * (columns // 4), hidden)),
            ("relu3", nn.ReLU()),
            ("fc2", nn.Linear(hidden, classes)),
        ]
        super().__init__(OrderedDict(layers))
