"""The networks: from inputs to logits, one family a file.

A network is a class (or a function that returns a torch.nn.Module). It is given those of `shape`
(of one sample), `classes`, `vocabulary` (of token ids) and `width` that its arguments name; its
other arguments are its options in a recipe. Without `shape`, its attribute `input_shape` says which
inputs it takes. Initial weights come from torch's global generator: `torch.manual_seed` before the
call fixes them.

A network of token ids [b, T] may give logits of every position, [b, T, classes]. Labels [b] then
belong to the last position, and labels [b, T] to each. The kernel is that of the last position.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from conescope.engine.tracing.forward import FORWARD_ERRORS, describe_failure
from conescope.engine.tracing.untouched import untouched
from conescope.errors import ModelError, RecipeError
from conescope.training.data.dataset import is_tokens
from conescope.training.parts import Part, find_part
from conescope.training.recipe_fields import ModelRecipe

NETWORKS = {
    "cnn": "conescope.training.models.cnn:CNN",
    "mlp": "conescope.training.models.mlp:MLP",
    "transformer": "conescope.training.models.transformer:Transformer",
    "lenet5": "conescope.training.models.lenet:LeNet5",
    "resnet20": "conescope.training.models.resnet:ResNet20",
    "vgg16": "conescope.training.models.vgg:VGG16",
}
"""Name in a recipe → where the network is."""

_FILLED = frozenset({"shape", "classes", "vocabulary", "width"})


def find_network(recipe: ModelRecipe) -> Part:
    """Find the network that a recipe names: one of `NETWORKS`, or a user's own.

    Raises:
        RecipeError: if there is none of this name, it is a network that is built already, or it
            takes no width and one is given.
    """
    part = find_part("model", recipe.name, NETWORKS, filled=_FILLED)
    if isinstance(part.call, nn.Module):
        raise RecipeError(
            f"model.name: {recipe.name} is a network; name the class or a function that builds "
            f"it, so that its first weights depend on the recipe's seed alone"
        )
    part.check_fields({"width": recipe.width}, {"width": ModelRecipe.width})
    return part


def build_model(
    recipe: ModelRecipe, shape: tuple[int, ...], classes: int, vocabulary: int | None = None
) -> nn.Module:
    """Build a recipe's network with fresh weights.

    Args:
        recipe: name, width and options.
        shape: shape of one sample, such as (channels, height, width).
        classes: number of logits.
        vocabulary: number of token ids that samples may hold; None if they hold none.

    Raises:
        RecipeError: if the network does not take such samples, or has no such option.
        ModelError: if a user's own code gives no torch.nn.Module.
    """
    part = find_network(recipe)
    wanted = getattr(part.call, "input_shape", shape)
    if isinstance(wanted, tuple | list) and tuple(wanted) != tuple(shape):
        raise RecipeError(
            f"model {recipe.name} takes images of shape {tuple(wanted)}, and these have "
            f"{tuple(shape)}; choose other data, or model cnn, which takes any"
        )
    available = {
        "shape": tuple(shape), "classes": classes, "vocabulary": vocabulary, "width": recipe.width
    }  # fmt: skip
    model = part(available=available, options=recipe.options)
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{recipe.name} gives a {type(model).__name__}, not a torch.nn.Module; return one"
        )
    return model


def check_network(
    model: nn.Module, inputs: Tensor, classes: int, name: str, every_position: bool = False
) -> None:
    """Check what a network makes of a few samples; it is left as it was.

    Lazy modules, which have no weights before they see an input, get theirs.

    Args:
        model: the network.
        inputs: [b, …].
        classes: the number of logits that it shall have.
        name: its name in the recipe, for messages.
        every_position: whether the labels are those of every position of token ids [b, T].

    Raises:
        ModelError: if it does not take the inputs, or does not give finite logits: [b, classes],
            or [b, T, classes], which labels of every position need.
    """
    if any(nn.parameter.is_lazy(p) for p in model.parameters()):
        with torch.no_grad():
            _logits(model.eval(), inputs, f"model {name}")
        model.train()
    for training in (False, True):
        what = f"model {name}" + " in training mode" * training
        with untouched(model):
            logits = _logits(model.train(training), inputs, what)
        _check_logits(logits, inputs, classes, what, every_position)


def _logits(model: nn.Module, inputs: Tensor, what: str) -> object:
    try:
        return model(inputs)
    except FORWARD_ERRORS as error:
        raise ModelError(
            f"{what} fails for inputs {list(inputs.shape)} of {inputs.dtype}: "
            f"{describe_failure(error, model)}; build it for inputs of this shape and type"
        ) from error


def _check_logits(
    logits: object, inputs: Tensor, classes: int, what: str, every_position: bool
) -> None:
    seen = f"for inputs {list(inputs.shape)} of {inputs.dtype}"
    shapes = [] if every_position else [[len(inputs), classes]]
    if is_tokens(inputs):
        shapes.append([*inputs.shape, classes])
    if not isinstance(logits, Tensor):
        raise ModelError(
            f"{what} gives a {type(logits).__name__} {seen}; it has to give one tensor, the "
            f"logits {' or '.join(map(str, shapes))}"
        )
    if list(logits.shape) not in shapes:
        raise ModelError(
            f"{what} gives {list(logits.shape)} {seen}; for these data it has to give the "
            f"logits {' or '.join(map(str, shapes))}"
        )
    if not logits.is_floating_point():
        raise ModelError(f"{what} gives {logits.dtype}; logits are floating-point numbers")
    if not bool(torch.isfinite(logits).all()):
        raise ModelError(
            f"{what} gives NaN or infinite logits {seen} at its first weights; look at how it "
            "sets them"
        )
    if not logits.requires_grad:
        raise ModelError(
            f"{what} gives logits that depend on no parameter that requires a gradient, so there "
            f"is nothing to train; unfreeze some (requires_grad_(True))"
        )


def last_position(logits: Tensor) -> Tensor:
    """Return the logits of the last position, [b, c], of [b, T, c] or of [b, c]."""
    return logits[:, -1] if logits.dim() == 3 else logits


def logits_for(labels: Tensor, logits: Tensor) -> Tensor:
    """Return the logits that labels belong to, as torch's cross-entropy takes them.

    Args:
        labels: [b], one for each sample, or [b, T], one for each position.
        logits: [b, c], or [b, T, c].

    Returns:
        [b, c] for labels [b]; [b, c, T] for labels [b, T].
    """
    return logits.movedim(-1, 1) if labels.dim() == 2 else last_position(logits)


def returning(taken: Callable[[Tensor], Tensor], model: nn.Module) -> RemovableHandle:
    """Let a network return what is taken of its logits, such as `last_position`.

    Returns:
        A context at whose end the network returns its logits again.
    """

    def take(_module: nn.Module, _inputs: object, logits: Tensor) -> Tensor:
        return taken(logits)

    return model.register_forward_hook(take)


def widened(channels: int, width: float) -> int:
    """Return the number of channels at a width multiplier, rounded, at least 1.

    Args:
        channels: the published number, width 1.
        width: a finite multiplier above 0.

    Raises:
        RecipeError: if the width is no such number.
    """
    if isinstance(width, bool) or not isinstance(width, int | float):
        raise RecipeError(f"width is {width!r}; give a number above 0, such as 0.5 or 1")
    if not (math.isfinite(width) and width > 0):
        raise RecipeError(f"width is {width}; give a finite number above 0, such as 0.5 or 1")
    return max(1, round(channels * width))


def check_classes(classes: int) -> None:
    """Raise `RecipeError` unless `classes`, the number of logits, is an integer of at least 1."""
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
        raise RecipeError(f"classes is {classes!r}; give an integer of at least 1, such as 10")


def check_layers(layers: int) -> None:
    """Raise `RecipeError` unless `layers`, of hidden units, is an integer of at least 1."""
    if isinstance(layers, bool) or not isinstance(layers, int) or layers < 1:
        raise RecipeError(f"layers is {layers!r}; give an integer of at least 1, such as 2")
