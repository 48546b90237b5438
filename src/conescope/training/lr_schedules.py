"""Learning-rate schedules: what the learning rate is multiplied by in each iteration.

A schedule is a function that is given those of `steps` (the length of the training),
`iterations_per_epoch`, `warmup`, `drops` (iterations) and `factor` that its arguments name; its
other arguments are its options in a recipe. It returns a function from the iteration (0 is the
first) to a finite number of at least 0. It is asked for every iteration once, in order, before the
training begins, so that a training that goes on later finds the same numbers.

A scheduler of torch.optim.lr_scheduler is played through on an optimiser with one parameter and
learning rate 1: its absolute learning rates (`eta_min`, `max_lr`) are multiples of `optimizer.lr`.
"""

from __future__ import annotations

import inspect
import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from conescope.errors import RecipeError
from conescope.training.parts import Part, find_part
from conescope.training.recipe_fields import LearningRateRecipe

Multiplier = Callable[[int], float]
"""A function from the iteration (0 is the first) to what the learning rate is multiplied by."""

LR_SCHEDULES = {
    "drops": "conescope.training.lr_schedules:drops_after_warmup",
    "cosine": "conescope.training.lr_schedules:cosine",
    "one-cycle": "conescope.training.lr_schedules:one_cycle",
}
"""Name in a recipe → where the schedule is."""

_REFUSED = {
    "reducelronplateau": "it depends on the loss, and a schedule here on the iteration alone",
    "lambdalr": "it needs a function, which a recipe cannot hold",
    "multiplicativelr": "it needs a function, which a recipe cannot hold",
    "chainedscheduler": "it is made of other schedulers, which a recipe cannot hold",
    "sequentiallr": "it is made of other schedulers, which a recipe cannot hold",
    "lrscheduler": "it is the base class of schedulers",
}

TORCH = {
    name.lower(): f"torch.optim.lr_scheduler:{name}"
    for name, kind in vars(lr_scheduler).items()
    if inspect.isclass(kind) and issubclass(kind, LRScheduler) and name[0] != "_"
    if name.lower() not in _REFUSED
}
"""Name in a recipe → the scheduler of torch.optim.lr_scheduler."""

_FILLED = frozenset({"steps", "iterations_per_epoch", "warmup", "drops", "factor"})
_REFUSALS = (ValueError, TypeError, RuntimeError, LookupError, ZeroDivisionError)


def find_lr_schedule(recipe: LearningRateRecipe) -> Part:
    """Find the schedule that a recipe names: one of `LR_SCHEDULES`, of torch, or a user's own.

    Raises:
        RecipeError: if there is none of this name, it is no function of the iteration alone, or
            it takes no warm-up or drops, and the recipe sets them.
    """
    name = recipe.name.lower()
    if name in _REFUSED:
        raise RecipeError(
            f"lr_schedule.name: {recipe.name} cannot be used: {_REFUSED[name]}; name a function "
            f"of your own, package.module:build"
        )
    is_torchs = name in TORCH
    filled = _FILLED | {"last_epoch"} if is_torchs else _FILLED
    part = find_part(
        "lr_schedule", recipe.name, LR_SCHEDULES | TORCH, filled=filled, positional=int(is_torchs)
    )
    names = ("warmup", "drops", "factor")
    part.check_fields(
        {name: getattr(recipe, name) for name in names},
        {name: getattr(LearningRateRecipe, name) for name in names},
    )
    return part


def build_lr_schedule(
    recipe: LearningRateRecipe, drops: tuple[int, ...], steps: int, iterations_per_epoch: int
) -> Multiplier:
    """Build a recipe's learning-rate schedule.

    Args:
        recipe: which schedule.
        drops: the iterations at which the learning rate drops, for schedules with drops.
        steps: length of the training in iterations.
        iterations_per_epoch: length of an epoch in iterations.

    Returns:
        The multiplier of each iteration; after the last iteration it keeps its last value.

    Raises:
        RecipeError: if the schedule has no such option, torch refuses the options, or a multiplier
            is no finite number of at least 0.
    """
    part = find_lr_schedule(recipe)
    available = {
        "steps": steps,
        "iterations_per_epoch": iterations_per_epoch,
        "warmup": recipe.warmup,
        "drops": drops,
        "factor": recipe.factor,
    }
    refusals = () if ":" in recipe.name else _REFUSALS
    try:
        if recipe.name.lower() in TORCH:
            values = _play(lambda o: part(o, available=available, options=recipe.options), steps)
        else:
            values = _asked(part(available=available, options=recipe.options), recipe.name, steps)
    except refusals as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"lr_schedule: torch refuses {recipe.name} so: {reason}; change its options"
        ) from error
    for step, value in enumerate(values):
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise RecipeError(
                f"lr_schedule: {recipe.name} multiplies the learning rate by {value!r} in "
                f"iteration {step + 1}; it takes a finite number of at least 0"
            )
    return lambda step: values[min(step, steps - 1)]


def drops_after_warmup(warmup: int, drops: tuple[int, ...], factor: float) -> Multiplier:
    """Rise linearly over `warmup` iterations; multiply by `factor` once more from each drop on."""

    def multiplier(step: int) -> float:
        warm = min(1.0, (step + 1) / warmup) if warmup else 1.0
        return warm * factor ** bisect_right(drops, step)

    return multiplier


def cosine(steps: int, warmup: int) -> Multiplier:
    """Rise linearly over `warmup` iterations, then fall to 0 along half a cosine.

    The fall is torch's CosineAnnealingLR over the iterations that are left.

    Raises:
        RecipeError: if the warm-up leaves none.
    """
    left = steps - warmup
    if left < 1:
        raise RecipeError(
            f"lr_schedule.warmup is {warmup}, which leaves nothing of {steps} iterations to the "
            f"cosine; set it lower"
        )
    fall = _play(lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, left), left)
    return lambda step: (step + 1) / warmup if step < warmup else fall[step - warmup]


def one_cycle(steps: int) -> Multiplier:
    """Rise to the learning rate over 30 % of the iterations, then fall far below its beginning.

    This is torch's OneCycleLR with its own defaults; momentum stays as it is.
    """
    values = _play(
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer, max_lr=1.0, total_steps=steps, cycle_momentum=False
        ),
        steps,
    )
    return lambda step: values[step]


def _asked(multiplier: Any, name: str, steps: int) -> list[float]:
    """Return the multiplier of each iteration."""
    if not isinstance(multiplier, Callable):
        raise RecipeError(
            f"lr_schedule.name: {name} gives a {type(multiplier).__name__}, not a function from "
            f"an iteration to a number; let it return one"
        )
    return [multiplier(step) for step in range(steps)]


def _play(build: Callable[[torch.optim.Optimizer], LRScheduler], steps: int) -> list[float]:
    """Return the learning rates that a scheduler gives an optimiser of learning rate 1.

    Raises:
        RecipeError: if it changes the momentum, too.
    """
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.5)
    scheduler = build(optimizer)
    [group] = optimizer.param_groups
    values = [float(group["lr"])]
    for _ in range(steps - 1):
        optimizer.step()
        scheduler.step()
        values.append(float(group["lr"]))
    if group["momentum"] != 0.5:
        raise RecipeError(
            "lr_schedule: the scheduler changes the momentum, too, and a schedule here changes "
            "the learning rate alone; set lr_schedule.cycle_momentum to false"
        )
    return values
