"""VGG-16 for CIFAR-10 (Simonyan & Zisserman, arXiv:1409.1556, column D), normalised."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

from torch import nn

from conescope.errors import RecipeError
from conescope.training.models import check_classes, widened
from conescope.training.models.initial import kaiming_normal, uniform_scale
from conescope.training.models.norm import Norm, norm2d

Head = Literal["large", "small"]
Layers = list[tuple[str, nn.Module]]

_CHANNELS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
_HIDDEN = 4096


def _features(width: float, norm: Norm, last_pool: nn.Module) -> Layers:
    """Return thirteen normalised 3 × 3 convolutions in five groups, each pooled by 2 at its end."""
    layers: Layers = []
    c_in = 3
    for group, channels in enumerate(_CHANNELS, start=1):
        for place, published in enumerate(channels, start=1):
            c_out = widened(published, width)
            conv = nn.Conv2d(c_in, c_out, kernel_size=3, padding=1)
            layers += [
                (f"conv{group}_{place}", conv),
                (f"norm{group}_{place}", norm2d(norm, c_out)),
                (f"relu{group}_{place}", nn.ReLU()),
            ]
            c_in = c_out
        last = group == len(_CHANNELS)
        layers.append((f"pool{group}", last_pool if last else nn.MaxPool2d(2)))
    return layers


def _large_head(c_in: int, hidden: int, classes: int) -> Layers:
    return [
        ("fc1", nn.Linear(c_in, hidden)),
        ("relu_fc1", nn.ReLU()),
        ("dropout1", nn.Dropout()),
        ("fc2", nn.Linear(hidden, hidden)),
        ("relu_fc2", nn.ReLU()),
        ("dropout2", nn.Dropout()),
        ("fc3", nn.Linear(hidden, classes)),
    ]


def _start_large(module: nn.Module) -> None:
    """Draw convolutions from N(0, 2 / fan-out), linear weights from N(0, 0.01²); biases are 0."""
    if not isinstance(module, nn.Conv2d | nn.Linear):
        return
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.normal_(module.weight, std=0.01)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


class VGG16(nn.Sequential):
    """Thirteen 3 × 3 convolutions with five poolings, then one or three linear layers.

    Maps [n, 3, 32, 32] to logits [n, classes]. At width 1, 10 classes and BatchNorm it has
    33,646,666 parameters with the large head and 14,728,266 with the small one.

    Two published networks, whose initial weights and last pooling belong to the head:

    - "large", zzp1012/LLFC (`cifar_vgg.py`): 4096-4096-`classes` units with dropout; max-pooling
      throughout; convolutions ~ N(0, 2 / fan-out), linear weights ~ N(0, 0.01²), biases 0.
    - "small", facebookresearch/open_lth (`cifar_vgg.py`): one linear layer; average pooling at
      the end; weights ~ N(0, 2 / fan-in), BatchNorm's scales γ ~ U(0, 1).

    norm="layer" exchanges the normalisation, as in samuela/git-re-basin (`cifar10_vgg_run.py`).

    Args:
        width: multiplies every number of channels and hidden units.
        head: "large" or "small".
        norm: "batch" (BatchNorm) or "layer" (LayerNorm over the channels of each pixel).
        classes: number of logits.

    Raises:
        RecipeError: if an argument is not one of these.
    """

    input_shape = (3, 32, 32)

    def __init__(
        self,
        width: float = 1.0,
        head: Head = "large",
        norm: Norm = "batch",
        classes: int = 10,
    ):
        check_classes(classes)
        if head not in ("large", "small"):
            raise RecipeError(f'head is {head!r}; choose "large" or "small"')
        c_out = widened(_CHANNELS[-1][-1], width)
        if head == "large":
            features = _features(width, norm, last_pool=nn.MaxPool2d(2))
            top = _large_head(c_out, widened(_HIDDEN, width), classes)
        else:
            features = _features(width, norm, last_pool=nn.AvgPool2d(2))
            top = [("fc", nn.Linear(c_out, classes))]
        super().__init__(OrderedDict([*features, ("flatten", nn.Flatten()), *top]))
        if head == "large":
            self.apply(_start_large)
        else:
            self.apply(kaiming_normal)
            self.apply(uniform_scale)
