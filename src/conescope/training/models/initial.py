"""Initial weights, as functions for `nn.Module.apply`: each acts on the modules it knows."""

from __future__ import annotations

from torch import nn


def kaiming_normal(module: nn.Module) -> None:
    """Draw weights of convolutions and linear layers from N(0, 2 / fan-in); leave the biases."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


def uniform_scale(module: nn.Module) -> None:
    """Draw BatchNorm's scales γ from U(0, 1)."""
    if isinstance(module, nn.BatchNorm2d):
        nn.init.uniform_(module.weight)
