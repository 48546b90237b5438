"""Measuring the kernel of a network in training, and leaving the network as it was."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from conescope.entk import entk
from conescope.kernel import Kernel
from conescope.recipe import KernelRecipe

_CALIBRATION_BATCH = 200


def measure(model: nn.Module, probe: Tensor, recipe: KernelRecipe, calibration: Tensor) -> Kernel:
    """The kernel of a network on the probe, in evaluation mode.

    Args:
        model: the network; its weights, buffers, gradients and mode are left as they were.
        probe: inputs of the probe, [n, …].
        recipe: which kernel.
        calibration: training inputs [N, …] to estimate BatchNorm's statistics on, if the recipe
            says so.

    Raises:
        ModelError: if the network has no exact eNTK.
        KernelError: if the kernel holds NaN.
    """
    was_training = model.training
    measured = recalibrated(model, calibration) if recipe.batchnorm == "recalibrated" else model
    measured.eval()
    kernel = entk(measured, probe, outputs=recipe.outputs, memory=recipe.memory)
    model.train(was_training)
    kernel.check_finite()
    return kernel


@torch.no_grad()
def recalibrated(model: nn.Module, inputs: Tensor) -> nn.Module:
    """A copy in evaluation mode whose BatchNorm statistics are estimated anew.

    The statistics are plain averages over batches of 200 inputs, with dropout off. Without
    BatchNorm the copy is the same network.

    Args:
        model: the network; it stays as it was.
        inputs: what to estimate on, [N, …].
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
