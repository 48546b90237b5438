"""Initial weights, as functions for `nn.Module.apply`: each acts on the modules it knows."""

from __future__ import annotations

from torch import nn


def kaiming_normal(module: nn.Module) -> None:
    """Weights of convolutions and linear layers ~ N(0, 2 / fan-in); biases as torch sets them."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


def uniform_scale(module: nn.Module) -> None:
    """BatchNorm's scale γ ~ U(0, 1)."""
    if isinstance(module, nn.BatchNorm2d):
        nn.init.uniform_(module.weight)
