"""A network whose only output is the sum of another's, for peers without that kernel."""

from __future__ import annotations

from torch import Tensor, nn


class Summed(nn.Module):
    """[n, …] → [n, 1]."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the network's outputs."""
        return self.network(x).sum(1, keepdim=True)
