"""The optimisers: those of torch.optim by name, with their own keyword arguments, or a user's own.

`lr`, `momentum` and `weight_decay` are fields of the recipe and are passed to every optimiser that
has an argument of that name, so that they are what the recipe says and not torch's own defaults.
"""

from __future__ import annotations

import inspect

import torch
from torch import nn
from torch.optim import Optimizer

from conescope.errors import RecipeError
from conescope.training.parts import Part, find_part
from conescope.training.recipe_fields import OptimizerRecipe

TORCH = {
    name.lower(): f"torch.optim:{name}"
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and issubclass(kind, Optimizer) and kind is not Optimizer
}
"""Name in a recipe → the optimiser of torch.optim."""

_FILLED = frozenset({"lr", "momentum", "weight_decay"})
_SPARSE = ("sparseadam",)
_DECOUPLED = ("adamw", "adafactor", "muon")
_REFUSALS = (ValueError, TypeError, RuntimeError, AssertionError, LookupError)


def find_optimizer(recipe: OptimizerRecipe) -> Part:
    """Find the optimiser that a recipe names: one of torch.optim, or a user's own.

    Raises:
        RecipeError: if there is none of this name, training cannot use it, or it has no momentum,
            or no weight decay of the kind, that the recipe sets.
    """
    part = find_part("optimizer", recipe.name, TORCH, filled=_FILLED, positional=1)
    if recipe.name.lower() in _SPARSE:
        raise RecipeError(
            f"optimizer.name: {recipe.name} is for sparse gradients, and those here are dense; "
            f"take adam"
        )
    if inspect.isclass(part.call) and issubclass(part.call, Optimizer):
        _refuse_closure(part.call, recipe.name)
    if not part.takes("lr"):
        raise RecipeError(
            f"optimizer.name: {recipe.name} takes no lr; it is called with the parameters, lr=… "
            f"and its options"
        )
    decays = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
    part.check_fields(decays, dict.fromkeys(decays, 0.0))
    decouples = recipe.name.lower() in _DECOUPLED or recipe.options.get("decoupled_weight_decay")
    if recipe.decay_towards == "start" and decouples:
        raise RecipeError(
            f"optimizer.decay_towards: {recipe.name}'s own decay goes to zero; take sgd or adam, "
            f"or zero"
        )
    return part


def build_optimizer(recipe: OptimizerRecipe, model: nn.Module) -> Optimizer:
    """Build the recipe's optimiser for a model's parameters.

    Args:
        recipe: which optimiser.
        model: at the weights it starts from, which the penalty may pull towards.

    Raises:
        RecipeError: if the optimiser has no such option, or torch refuses the options or the
            parameters, or a user's own code gives no optimiser. What a user's own code raises
            comes through as it is.
    """
    part = find_optimizer(recipe)
    parameters = [p for p in model.parameters() if p.requires_grad]
    towards_start = recipe.decay_towards == "start"
    decay = 0.0 if towards_start else recipe.weight_decay
    available = {"lr": recipe.lr, "momentum": recipe.momentum, "weight_decay": decay}
    refusals = () if ":" in recipe.name else _REFUSALS
    try:
        optimizer = part(parameters, available=available, options=recipe.options)
        if not isinstance(optimizer, Optimizer):
            raise RecipeError(
                f"optimizer.name: {recipe.name} gives a {type(optimizer).__name__}, not a "
                f"torch.optim.Optimizer; let it return one"
            )
        _refuse_closure(type(optimizer), recipe.name)
        _refuse_inner(optimizer, recipe.name)
        if refusals:
            tried = parameters[0].detach().clone().requires_grad_()
            tried.grad = torch.zeros_like(tried)  # some options are refused at a step only
            part([tried], available=available, options=recipe.options).step()
    except refusals as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"optimizer: torch refuses {recipe.name} so: {reason}; change its options"
        ) from error
    if towards_start:
        _pull_towards_start(optimizer, parameters, recipe.weight_decay)
    return optimizer


def _refuse_closure(kind: type, name: str) -> None:
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise RecipeError(
            f"optimizer.name: {name} evaluates the loss several times an iteration (its step "
            f"needs a closure), and training here evaluates it once; take another"
        )


def _refuse_inner(optimizer: Optimizer, name: str) -> None:
    for attribute, value in vars(optimizer).items():
        if isinstance(value, Optimizer):
            raise RecipeError(
                f"optimizer.name: {name} holds another optimiser, {attribute!r}, whose state a "
                f"snapshot would not store; derive from its class instead"
            )


def _pull_towards_start(
    optimizer: Optimizer, parameters: list[nn.Parameter], strength: float
) -> None:
    """Add the gradient of ½ strength |θ − θ_start|² before every step."""
    start = [p.detach().clone() for p in parameters]

    def add_penalty(*_: object) -> None:
        for p, origin in zip(parameters, start, strict=True):
            if p.grad is not None:
                p.grad.add_(p.detach() - origin, alpha=strength)

    optimizer.register_step_pre_hook(add_penalty)
