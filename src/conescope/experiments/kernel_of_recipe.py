"""Measure the kernel that a recipe asks for, of a network in the middle of its training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from conescope.engine import entk, estimate_entk, project
from conescope.engine.tracing.untouched import outputs_of
from conescope.kernel.estimates import PROJECTED_DRAWS, SEED, Measured
from conescope.measuring.undisturbed import evaluation_mode, recalibrated
from conescope.training.models import last_position, returning
from conescope.training.recipe_fields import KernelRecipe


def measure_kernel(
    model: nn.Module, probe: Tensor, recipe: KernelRecipe, calibration: Tensor
) -> Measured:
    """Measure the kernel of a network on the probe, or estimate it, in evaluation mode.

    Of a network with logits at every position, it is the kernel of the last position's.

    Args:
        model: the network; its weights, buffers, gradients and mode are left as they were.
        probe: inputs of the probe, [n, …].
        recipe: which kernel.
        calibration: training inputs [N, …] to estimate BatchNorm's statistics on, if the recipe
            says so.

    Raises:
        ModelError: if the network has no exact eNTK.
        KernelError: if the kernel is not finite, or zero.
    """
    with _as_measured(model, recipe, calibration) as measured:
        return _kernel(measured, probe, recipe)


def kernel_and_outputs(
    model: nn.Module, probe: Tensor, recipe: KernelRecipe, calibration: Tensor
) -> tuple[Measured, Tensor | None]:
    """Measure the kernel as `measure_kernel` does, and the outputs [n, c] that it is the kernel of.

    The outputs are None if they are too large to be stored, or not finite.
    """
    with _as_measured(model, recipe, calibration) as measured:
        return _kernel(measured, probe, recipe), outputs_of(measured, probe)


@contextmanager
def _as_measured(
    model: nn.Module, recipe: KernelRecipe, calibration: Tensor
) -> Iterator[nn.Module]:
    measured = recalibrated(model, calibration) if recipe.batchnorm == "recalibrated" else model
    with evaluation_mode(measured), returning(last_position, measured):
        yield measured


def _kernel(measured: nn.Module, probe: Tensor, recipe: KernelRecipe) -> Measured:
    memory = recipe.memory
    if recipe.projection is not None:
        dim, draws = recipe.projection, PROJECTED_DRAWS
        return project(measured, probe, dim=dim, seed=SEED, draws=draws, memory=memory)
    if recipe.estimate is not None:
        kernel = estimate_entk(measured, probe, draws=recipe.estimate, seed=SEED, memory=memory)
    else:
        outputs, by_layer = recipe.outputs, recipe.by_layer
        kernel = entk(measured, probe, outputs=outputs, by_layer=by_layer, memory=memory)
    kernel.check_usable()
    return kernel
