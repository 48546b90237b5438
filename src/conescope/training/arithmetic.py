"""What autocast to bfloat16 and channels-last memory are not for."""

from __future__ import annotations

import torch
from torch import nn

from conescope.errors import RecipeError
from conescope.training.recipe import Recipe


def check_bfloat16(recipe: Recipe) -> None:
    """Raise `RecipeError` if autocast to bfloat16 is not for this recipe, or not for its device."""
    if recipe.dtype != "float32":
        raise RecipeError(
            "training.precision: bfloat16 is for a network of dtype float32; set it to full"
        )
    is_cuda = torch.device(recipe.device).type == "cuda"
    if is_cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RecipeError(
            f"training.precision: {recipe.device!r} does not compute in bfloat16; set it to full"
        )


def check_channels_last(model: nn.Module, shape: tuple[int, ...], device: str) -> None:
    """Raise `RecipeError` for samples of a shape without channels, or where torch is wrong.

    Torch's fault is the one that `ChannelLayerNorm` describes.
    """
    if len(shape) != 3:
        raise RecipeError(
            f"training.memory_format: channels_last is for images [channels, height, width], and "
            f"these samples have shape {list(shape)}; set it to contiguous"
        )
    for name, module in model.named_modules():
        is_pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
        if is_pointwise and module.stride != (1, 1) and device == "cpu":
            raise RecipeError(
                f"training.memory_format: on a CPU, the backward pass of 1 × 1 convolutions with "
                f"strides, such as {name}, may corrupt memory in channels_last (seen in torch "
                f"2.13); set it to contiguous"
            )
