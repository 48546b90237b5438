"""LeNet-5 for MNIST, as in zzp1012/LLFC (`mnist_lenet.py`): rectifiers and max-pooling."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from conescope.training.models import check_classes, widened


class LeNet5(nn.Sequential):
    """Two 5 × 5 convolutions (6, 16 channels), each pooled by 2, then 120-84-`classes` units.

    Maps [n, 1, 28, 28] to logits [n, classes]. 61,706 parameters at width 1 and 10 classes.
    Weights start as torch sets them: uniform, bounded by 1/√fan-in.

    Args:
        width: multiplies every number of channels and hidden units.
        classes: number of logits.

    Raises:
        RecipeError: if `width` or `classes` is not a number above 0.
    """

    input_shape = (1, 28, 28)

    def __init__(self, width: float = 1.0, classes: int = 10):
        check_classes(classes)
        c1, c2, h1, h2 = (widened(units, width) for units in (6, 16, 120, 84))
        layers: list[tuple[str, nn.Module]] = [
            ("conv1", nn.Conv2d(1, c1, kernel_size=5, padding=2)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(c1, c2, kernel_size=5)),
            ("relu2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(c2 * 5 * 5, h1)),
            ("relu3", nn.ReLU()),
            ("fc2", nn.Linear(h1, h2)),
            ("relu4", nn.ReLU()),
            ("fc3", nn.Linear(h2, classes)),
        ]
        super().__init__(OrderedDict(layers))
