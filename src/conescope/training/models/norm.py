"""The two normalisations that the image networks are built with."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from conescope.errors import RecipeError

Norm = Literal["batch", "layer"]


class ChannelLayerNorm(nn.Module):
    """LayerNorm over the channels of each position of an image, [n, c, h, w] → [n, c, h, w].

    This is what `LayerNorm` means in channels-last code such as samuela/git-re-basin.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every pixel's channel vector."""
        y = self.norm(x.movedim(1, -1)).movedim(-1, 1)
        # A 1 × 1 convolution with stride 2 and fewer than 16 channels corrupts memory in its
        # backward pass when its input lies channels-last (torch 2.13, CPU).
        return y.contiguous()


def norm2d(norm: Norm, channels: int) -> nn.Module:
    """Build a normalisation for images of so many channels, with scale 1 and shift 0.

    Raises:
        RecipeError: if `norm` is neither "batch" nor "layer".
    """
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "layer":
        return ChannelLayerNorm(channels)
    raise RecipeError(f'norm is {norm!r}; choose "batch" or "layer"')
