"""Augmentation: random changes of training images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from conescope.errors import RecipeError

_CROP_PADDING = 4


def check_images(samples: Tensor) -> None:
    """Raise `RecipeError` unless samples [N, …] are images that can be flipped and shifted."""
    if samples.dim() != 4:
        raise RecipeError(
            f"data.augmentation: flip-crop is for images [channels, height, width], and these "
            f"samples have shape {list(samples.shape[1:])}; set it to none"
        )


def flip_and_crop(images: Tensor, seed: int) -> Tensor:
    """Flip each image left-right with probability ½, shift it by up to 4 pixels, fill with 0.

    Args:
        images: [N, channels, height, width], uint8.
        seed: decides every flip and shift.

    Returns:
        New images of the same shape and type.
    """
    count, _, height, width = images.shape
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(0, 2 * _CROP_PADDING + 1, (2, count, 1), generator=generator)
    flips = torch.rand(count, 1, generator=generator) < 0.5
    rows = (draw[0] + torch.arange(height)).to(images.device)
    columns = torch.arange(width).expand(count, width)
    columns = (draw[1] + torch.where(flips, columns.flip(1), columns)).to(images.device)
    padded = F.pad(images, [_CROP_PADDING] * 4)
    picked = torch.arange(count, device=images.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]]
    return cropped.permute(0, 3, 1, 2)
