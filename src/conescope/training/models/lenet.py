"""LeNet-5 for MNIST, as in zzp1012/LLFC (`mnist_lenet.py`): rectifiers and max-pooling."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from conescope.training.models import check_classes, check_layers, widened
from conescope.training.models.norm import AnyNorm, rectified


class LeNet5(nn.Sequential):
    """Two 5 × 5 convolutions (6, 16 channels), each pooled by 2, then 120-84-`classes` units.

    With more `layers`, there are further ones of 84 units; with one, there is that of 120 only.

    Maps [n, 1, 28, 28] to logits [n, classes]. 61,706 parameters at width 1 and 10 classes.
    Weights start as torch sets them: uniform, bounded by 1/√fan-in.

    Args:
        width: multiplies every number of channels and hidden units.
        classes: number of logits.
        layers: number of hidden fully connected layers.
        norm: normalisation before each rectifier: by channel of convolutions and by unit of the
            others ("batch"), or over the channels of each position, and over the units ("layer").

    Raises:
        RecipeError: if `width`, `classes` or `layers` is no number above 0, or there is no such
            `norm`.
    """

    input_shape = (1, 28, 28)

    def __init__(
        self, width: float = 1.0, classes: int = 10, layers: int = 2, norm: AnyNorm = "none"
    ):
        check_classes(classes)
        check_layers(layers)
        c1, c2, h1, h2 = (widened(units, width) for units in (6, 16, 120, 84))
        units = [c2 * 5 * 5, h1, *[h2] * (layers - 1)]
        built: list[tuple[str, nn.Module]] = [
            *rectified(nn.Conv2d(1, c1, kernel_size=5, padding=2), "conv1", 1, norm),
            ("pool1", nn.MaxPool2d(2)),
            *rectified(nn.Conv2d(c1, c2, kernel_size=5), "conv2", 2, norm),
            ("pool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()),
        ]
        for place, (before, after) in enumerate(pairwise(units), start=1):
            built += rectified(nn.Linear(before, after), f"fc{place}", place + 2, norm)
        built.append((f"fc{layers + 1}", nn.Linear(units[-1], classes)))
        super().__init__(OrderedDict(built))
