"""How samples become a network's inputs: images with mean 0 and deviation 1 in each channel."""

from __future__ import annotations

import torch
from torch import Tensor

from conescope.errors import DataError


class Normalizer:
    """Turns a data set's samples into a network's inputs.

    uint8 images get mean 0 and deviation 1 in each channel, floating-point samples the network's
    floating-point type; other whole numbers, such as token ids, stay as they are.

    Args:
        samples: [N, …], those of training: where mean and deviation are taken from.
        dtype: floating-point type of the network.

    Raises:
        DataError: if all images have one value throughout a channel.
    """

    def __init__(self, samples: Tensor, dtype: torch.dtype) -> None:
        self._dtype = dtype
        if samples.dtype != torch.uint8:
            return
        values = torch.arange(256, dtype=torch.float64)
        rows = []
        for number, channel in enumerate(samples.cpu().transpose(0, 1).flatten(1)):
            share = torch.bincount(channel, minlength=256).double() / channel.numel()
            mean = (share * values).sum()
            deviation = (share * (values - mean).square()).sum().sqrt()
            if not deviation > 0:
                raise DataError(
                    f"all training images have the value {channel[0]} throughout channel {number}, "
                    f"which cannot be normalised; leave the channel out"
                )
            rows.append((values - mean) / deviation)
        self._table = torch.stack(rows).to(samples.device, dtype)

    def __call__(self, samples: Tensor) -> Tensor:
        """Return a network's inputs [n, …] from samples [n, …]."""
        if samples.dtype == torch.uint8:
            channels = [row[samples[:, c].int()] for c, row in enumerate(self._table)]
            return torch.stack(channels, dim=1)
        return samples.to(self._dtype) if samples.is_floating_point() else samples


def every_value(samples: Tensor) -> Tensor:
    """Return images [256, channels, 1, 1] of all values instead of images; others as they are.

    They stand for images of which a few are known only, which say nothing of mean and deviation.
    """
    if samples.dtype != torch.uint8:
        return samples
    values = torch.arange(256, dtype=torch.uint8, device=samples.device)
    return values.view(-1, 1, 1, 1).expand(-1, samples.shape[1], -1, -1)
