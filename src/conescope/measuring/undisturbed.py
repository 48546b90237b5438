"""Measure a network in the middle of its training, and leave it as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conescope.engine.tracing.untouched import untouched

_CALIBRATION_BATCH = 200
EVALUATION_BATCH = 125
"""How many samples are evaluated in one forward pass."""


@torch.no_grad()
def recalibrated(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Copy a network, in evaluation mode, and estimate its BatchNorm statistics anew.

    The statistics are plain averages over batches of 200 inputs, with dropout off. A network
    without BatchNorm is only copied.

    Args:
        model: the network; it stays as it was.
        inputs: the inputs on which the statistics are estimated, [N, …].
    """
    copied = copy.deepcopy(model).eval()
    layers = [m for m in copied.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        return copied
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # torch's sign for a plain average over all batches
        layer.train()
    for batch in inputs.split(_CALIBRATION_BATCH):
        copied(batch)
    return copied.eval()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    inputs: Callable[[slice], Tensor],
    labels: Tensor,
    loss_of: Callable[..., Tensor] = F.cross_entropy,
) -> dict[str, float]:
    """Compute the mean loss and the accuracy in evaluation mode; the network stays as it was.

    Args:
        model: the network, from inputs [b, …] to logits [b, c], or [b, c, T] of T positions.
        inputs: returns the inputs of a slice of the samples.
        labels: int64, [N] or [N, T].
        loss_of: the loss, from logits, labels and `reduction` "sum"; cross-entropy by default.

    Returns:
        "loss", at least 0 (cross-entropy is in nats), and "accuracy" in [0, 1].
    """
    loss = torch.zeros((), dtype=torch.float64, device=labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=labels.device)
    with evaluation_mode(model):
        for begin in range(0, len(labels), EVALUATION_BATCH):
            part = slice(begin, begin + EVALUATION_BATCH)
            logits = model(inputs(part))
            loss += loss_of(logits, labels[part], reduction="sum")
            correct += (logits.argmax(dim=1) == labels[part]).sum()
    count = labels.numel()
    return {"loss": loss.item() / count, "accuracy": correct.item() / count}


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Measure a model in the middle of any training loop, and leave everything as it was.

    Inside, the model is in evaluation mode, gradients can be taken, autocast is off, and nothing
    is compiled. Afterwards modes, weights, buffers, attributes and the states of all random
    generators are the same bits as before, whatever the model's forward pass did to them.
    """
    with untouched(model), evaluation_mode(model):
        yield


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and afterwards each of its modules back into its own.

    The flags are set without `eval()`, which some modules override to change more than the mode.
    """
    modes = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
