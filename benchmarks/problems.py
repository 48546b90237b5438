"""The problems: a network in evaluation mode and a batch of images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conescope.training.models.lenet import LeNet5
from conescope.training.models.resnet import ResNet20
from conescope.training.models.vgg import VGG16

OUTPUTS = ("full", "trace", "sum")
CLASSES = 10


@dataclass(frozen=True)
class Network:
    """A network and the shape of its images."""

    label: str
    build: Callable[[], nn.Module]
    image: tuple[int, int, int]


@dataclass(frozen=True)
class Problem:
    """A network and the number of samples whose kernel is wanted."""

    network: Network
    n: int

    @property
    def label(self) -> str:
        """The problem's name in tables and figures."""
        return f"{self.network.label}, n = {self.n}"

    def make(self) -> tuple[nn.Module, Tensor]:
        """The network and the images [n, …], the same in every process.

        BatchNorm gets running statistics other than 0 and 1 from ten passes in training mode.
        """
        torch.manual_seed(0)
        model = self.network.build()
        with torch.no_grad():
            for _ in range(10):
                model(torch.randn(32, *self.network.image))
        return model.eval(), torch.randn(self.n, *self.network.image)


LENET = Network("LeNet-5", LeNet5, (1, 28, 28))
RESNET = Network("ResNet-20", ResNet20, (3, 32, 32))
VGG = Network("VGG-16", lambda: VGG16(head="small"), (3, 32, 32))

TINY = Problem(Network("LeNet-5, narrow", lambda: LeNet5(0.25), LENET.image), 2)

PROBLEMS = {
    "lenet-256": Problem(LENET, 256),
    "resnet-64": Problem(RESNET, 64),
    "resnet-256": Problem(RESNET, 256),
    "vgg-16": Problem(VGG, 16),
    "vgg-32": Problem(VGG, 32),
    "lenet-32": Problem(LENET, 32),
    "resnet-8": Problem(RESNET, 8),
    "vgg-2": Problem(VGG, 2),
}
FULL_RUN = ("lenet-256", "resnet-64", "resnet-256", "vgg-16", "vgg-32")
QUICK_RUN = ("lenet-32", "resnet-8")
