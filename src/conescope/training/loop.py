"""Training: a generator that yields the state after every iteration, and does nothing else.

It takes no measurement, writes no file and prints nothing: its caller may measure the model between
two iterations, and has to leave it as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from conescope.errors import TrainingError
from conescope.training.arithmetic import compiled
from conescope.training.data.sampling import seed_for, seed_generators
from conescope.training.losses import Loss
from conescope.training.models import logits_for

Batches = Callable[[int], tuple[Tensor, Tensor]]
"""A function from an iteration (0 is the first) to its inputs [b, …] and labels [b] or [b, T]."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a training after `step` iterations.

    Attributes:
        step: iterations done.
        model: the network, live: the next iteration changes it.
        optimizer: its optimiser, live too.
        average: an exponential average of the weights (and buffers), live; None if there is none.
    """

    step: int
    model: nn.Module
    optimizer: Optimizer
    average: AveragedModel | None = None


def train(
    model: nn.Module,
    optimizer: Optimizer,
    batches: Batches,
    schedule: Callable[[int], float],
    *,
    start: int,
    stop: int,
    seed: int,
    average: AveragedModel | None = None,
    autocast: torch.dtype | None = None,
    is_compiled: bool = False,
    loss_of: Loss = F.cross_entropy,
) -> Iterator[Snapshot]:
    """Train on a loss; yield the state at `start` and after every iteration.

    Args:
        model: network from inputs to logits [b, c], or [b, T, c]; trained in place, in training
            mode, on the mean loss over all labels.
        optimizer: its optimiser, as it was after `start` iterations.
        batches: the data of each iteration.
        schedule: what the learning rate is multiplied by in each iteration.
        start: iterations already done.
        stop: iterations to do in all.
        seed: decides dropout and other random numbers, together with the iteration alone.
        average: takes part in the weights after every iteration.
        autocast: the type to which torch's autocast lowers the forward pass; None for no autocast.
        is_compiled: whether torch.compile makes code of the forward and backward pass.
        loss_of: the loss.

    Raises:
        TrainingError: if the loss is NaN or infinite; the step is named, and no update is made
            from it.
        RecipeError: if torch cannot compile the network, or compiles it anew again and again.
    """
    forward, backward = compiled(model) if is_compiled else (model, Tensor.backward)
    for group in optimizer.param_groups:
        group.setdefault("initial_lr", group["lr"])
    scheduler = LambdaLR(optimizer, schedule, last_epoch=start - 1)
    yield Snapshot(start, model, optimizer, average)
    for step in range(start, stop):
        model.train()
        inputs, labels = batches(step)
        seed_generators(seed_for(seed, "iteration", step))
        lower = torch.autocast(inputs.device.type, autocast, enabled=autocast is not None)
        with torch.enable_grad(), lower:  # a user's own module may have turned gradients off
            loss = loss_of(logits_for(labels, forward(inputs)), labels)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"the loss is {loss.item()} in iteration {step + 1}: training diverged; lower "
                f"optimizer.lr (now {optimizer.param_groups[0]['initial_lr']:g}), warm it up with "
                f"lr_schedule.warmup, or look at the data"
            )
        optimizer.zero_grad()
        backward(loss)
        optimizer.step()
        scheduler.step()
        if average is not None:
            average.update_parameters(model)
        yield Snapshot(step + 1, model, optimizer, average)


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential average of a model's weights and buffers, which starts as a copy of it.

    Args:
        model: stays as it was.
        decay: share of the old average that an iteration keeps, in (0, 1): the average reaches
            back about 1 / (1 − decay) iterations.
    """
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
