"""The normalisations that networks are built with."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from conescope.errors import RecipeError

Norm = Literal["batch", "layer"]
"""Of the networks that are always normalised."""

AnyNorm = Literal["none", "batch", "layer"]


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


def rectified(
    layer: nn.Linear | nn.Conv2d, name: str, number: int, norm: AnyNorm
) -> list[tuple[str, nn.Module]]:
    """Return a layer, its normalisation if there is one, and a rectifier, with their names.

    Args:
        layer: the layer.
        name: what the layer is called.
        number: that of its normalisation and rectifier.
        norm: the normalisation between layer and rectifier.

    Raises:
        RecipeError: if there is no such normalisation.
    """
    found: list[tuple[str, nn.Module]] = [(name, layer)]
    if norm == "batch" and isinstance(layer, nn.Linear):
        found.append((f"norm{number}", nn.BatchNorm1d(layer.out_features)))
    elif norm == "layer" and isinstance(layer, nn.Linear):
        found.append((f"norm{number}", nn.LayerNorm(layer.out_features)))
    elif norm in ("batch", "layer") and isinstance(layer, nn.Conv2d):
        found.append((f"norm{number}", norm2d(norm, layer.out_channels)))
    elif norm != "none":
        raise RecipeError(f'norm is {norm!r}; choose "none", "batch" or "layer"')
    return [*found, (f"relu{number}", nn.ReLU())]
