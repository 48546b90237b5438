"""The networks; one family a file, logits out.

Every network takes a width multiplier, so that one experiment runs on two cores (narrow) and on
a GPU (full width). Initial weights come from torch's global generator: `torch.manual_seed`
before the call fixes them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict

from torch import nn

from conescope.errors import RecipeError
from conescope.training.models.cnn import CNN
from conescope.training.models.lenet import LeNet5
from conescope.training.models.mlp import MLP
from conescope.training.models.resnet import ResNet20
from conescope.training.models.vgg import VGG16
from conescope.training.recipe_fields import ModelRecipe

__all__ = ["CNN", "MLP", "VGG16", "LeNet5", "ResNet20", "build_model"]

_FAMILIES: dict[str, Callable[..., nn.Module]] = {
    "cnn": CNN,
    "mlp": MLP,
    "lenet5": LeNet5,
    "resnet20": ResNet20,
    "vgg16": VGG16,
}
_IMAGE_SHAPES = {"lenet5": (1, 28, 28), "resnet20": (3, 32, 32), "vgg16": (3, 32, 32)}


def build_model(recipe: ModelRecipe, image_shape: tuple[int, ...], classes: int) -> nn.Module:
    """Build a recipe's network with fresh weights.

    Args:
        recipe: family, width and variant.
        image_shape: (channels, height, width) of the images it will see.
        classes: number of logits.

    Raises:
        RecipeError: if the family does not take these images, or has no such variant.
    """
    family = _FAMILIES[recipe.name]
    takes = inspect.signature(family).parameters
    options = {name: v for name, v in asdict(recipe).items() if name != "name" and v is not None}
    for option in options:
        if option not in takes:
            raise RecipeError(f"model.{option} does not apply to {recipe.name}; set it to null")
    if "shape" in takes:
        options["shape"] = image_shape
    elif image_shape != _IMAGE_SHAPES[recipe.name]:
        raise RecipeError(
            f"model {recipe.name} takes images of shape {_IMAGE_SHAPES[recipe.name]}, and these "
            f"have {image_shape}; choose other data, or model cnn, which takes any"
        )
    return family(**options, classes=classes)
