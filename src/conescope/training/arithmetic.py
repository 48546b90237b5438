"""How an iteration is computed: autocast to bfloat16, channels-last memory, compiled code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from conescope.errors import RecipeError
from conescope.training.recipe import Recipe


def check_arithmetic(recipe: Recipe) -> None:
    """Raise `RecipeError` if the precision or the compiler is not for this recipe or its device."""
    if recipe.training.precision == "bfloat16":
        _check_bfloat16(recipe)
    if recipe.training.compile and recipe.dynamics.kind == "linearised":
        raise RecipeError(
            "training.compile: torch cannot compile linearised networks; set it to false"
        )


def _check_bfloat16(recipe: Recipe) -> None:
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


def compiled(model: nn.Module) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], None]]:
    """Return a network's forward and backward pass, compiled by torch when it first meets a shape.

    The model stays as it is. What was compiled before is forgotten, since torch stops compiling
    after some networks, and each shape has code of its own, so that a training that is stopped and
    goes on computes with the same code.

    Args:
        model: takes one tensor.

    Returns:
        A function from inputs to outputs, and one that takes a loss of them and adds its gradients
        to those of the weights. They raise `RecipeError` if torch cannot compile the network, or
        compiles it anew again and again; errors of the network itself stay as they are.
    """
    from torch._dynamo import config, exc  # which take seconds to import

    names = ("FailOnRecompileLimitHit", "FailOnCacheLimitHit")  # the latter in torch 2.6
    too_often = tuple(getattr(exc, name) for name in names if hasattr(exc, name))
    torch.compiler.reset()
    fast = torch.compile(model, dynamic=False)

    def forward(inputs: Tensor) -> Tensor:
        try:
            # otherwise torch goes on uncompiled where a training that was stopped would compile
            with config.patch(fail_on_cache_limit_hit=True, suppress_errors=False):
                return fast(inputs)
        except too_often as error:
            raise RecipeError(
                "training.compile: torch has to compile this network anew again and again, as its "
                "forward pass depends on a value that changes, such as a counter; set it to false"
            ) from error
        except exc.TorchDynamoException as error:
            model(inputs)  # raises the network's own error, if it has one
            raise _not_compiled(error) from error

    def backward(loss: Tensor) -> None:
        try:
            loss.backward()  # compiles, too, when it is first called
        except exc.TorchDynamoException as error:
            raise _not_compiled(error) from error

    return forward, backward


def _not_compiled(error: Exception) -> RecipeError:
    return RecipeError(
        f"training.compile: torch cannot compile this network here "
        f"({str(error).splitlines()[0]}); set it to false"
    )
