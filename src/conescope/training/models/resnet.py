"""ResNet-20 for CIFAR-10 (He et al., arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from collections import OrderedDict
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from conescope.errors import RecipeError
from conescope.training.models import check_classes, widened
from conescope.training.models.initial import kaiming_normal, uniform_scale
from conescope.training.models.norm import Norm, norm2d

Shortcut = Literal["A", "B"]


class PadChannels(nn.Module):
    """Shortcut A: every second pixel, with zero channels added on both sides. No parameters."""

    def __init__(self, added: int):
        super().__init__()
        self.before, self.after = added // 2, added - added // 2

    def forward(self, x: Tensor) -> Tensor:
        """[n, c, h, w] → [n, c + added, ⌈h/2⌉, ⌈w/2⌉]."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


def _conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel_size=3, stride=stride, padding=1, bias=False)


def _shortcut(c_in: int, c_out: int, stride: int, shortcut: Shortcut, norm: Norm) -> nn.Module:
    if stride == 1:
        return nn.Identity()
    if shortcut == "A":
        return PadChannels(c_out - c_in)
    conv = nn.Conv2d(c_in, c_out, kernel_size=1, stride=stride, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=norm2d(norm, c_out)))


class Block(nn.Module):
    """Two normalised 3 × 3 convolutions, added to the shortcut before the last rectifier."""

    def __init__(self, c_in: int, c_out: int, stride: int, shortcut: Shortcut, norm: Norm):
        super().__init__()
        self.conv1 = _conv3x3(c_in, c_out, stride)
        self.norm1 = norm2d(norm, c_out)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(c_out, c_out)
        self.norm2 = norm2d(norm, c_out)
        self.shortcut = _shortcut(c_in, c_out, stride, shortcut, norm)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[n, c_in, h, w] → [n, c_out, h / stride, w / stride]."""
        y = self.relu1(self.norm1(self.conv1(x)))
        return self.relu2(self.norm2(self.conv2(y)) + self.shortcut(x))


def _stage(c_in: int, c_out: int, stride: int, shortcut: Shortcut, norm: Norm) -> nn.Sequential:
    return nn.Sequential(
        Block(c_in, c_out, stride, shortcut, norm),
        Block(c_out, c_out, 1, shortcut, norm),
        Block(c_out, c_out, 1, shortcut, norm),
    )


class ResNet20(nn.Sequential):
    """A 3 × 3 convolution, three stages of three blocks (16, 32, 64 channels), one linear layer.

    Maps [n, 3, 32, 32] to logits [n, classes]. At width 1, 10 classes and BatchNorm it has
    269,722 parameters with shortcut A and 272,474 with shortcut B.

    Two published networks: shortcut A is that of zzp1012/LLFC (`cifar_resnet_plus.py`), shortcut
    B with BatchNorm that of facebookresearch/open_lth (`cifar_resnet.py`), whose scales start
    as γ ~ U(0, 1). Weights start as N(0, 2 / fan-in). norm="layer" exchanges the normalisation,
    as in samuela/git-re-basin (`resnet20.py`), which has 3 × 3 shortcuts where ours are 1 × 1.

    Args:
        width: multiplies every number of channels.
        shortcut: "A", padding, or "B", a normalised 1 × 1 convolution, where a stage halves
            the image.
        norm: "batch" (BatchNorm) or "layer" (LayerNorm over the channels of each pixel).
        classes: number of logits.

    Raises:
        RecipeError: if an argument is not one of these.
    """

    input_shape = (3, 32, 32)

    def __init__(
        self,
        width: float = 1.0,
        shortcut: Shortcut = "A",
        norm: Norm = "batch",
        classes: int = 10,
    ):
        check_classes(classes)
        if shortcut not in ("A", "B"):
            raise RecipeError(f'shortcut is {shortcut!r}; choose "A" or "B"')
        c1, c2, c3 = (widened(channels, width) for channels in (16, 32, 64))
        layers: list[tuple[str, nn.Module]] = [
            ("conv", _conv3x3(3, c1)),
            ("norm", norm2d(norm, c1)),
            ("relu", nn.ReLU()),
            ("stage1", _stage(c1, c1, 1, shortcut, norm)),
            ("stage2", _stage(c1, c2, 2, shortcut, norm)),
            ("stage3", _stage(c2, c3, 2, shortcut, norm)),
            ("pool", nn.AdaptiveAvgPool2d(1)),
            ("flatten", nn.Flatten()),
            ("fc", nn.Linear(c3, classes)),
        ]
        super().__init__(OrderedDict(layers))
        self.apply(kaiming_normal)
        if shortcut == "B":
            self.apply(uniform_scale)
