"""A perturbation of a network's weights: a step of a given length in a random direction."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from conescope.errors import RecipeError
from conescope.training.data.sampling import seed_for


@torch.no_grad()
def perturb(model: nn.Module, size: float, seed: int) -> None:
    """Move all parameters together by `size` times their norm, in a random direction.

    The direction is uniform on the sphere of all parameters that require a gradient; buffers
    stay as they are.

    Args:
        model: the network; changed in place.
        size: norm of the step, relative to that of the parameters.
        seed: decides the direction.

    Raises:
        RecipeError: if rounding leaves all parameters as they were, or they are all zero.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.clone() for p in parameters]
    generator = torch.Generator().manual_seed(seed_for(seed, "perturbation"))
    steps = [torch.randn(p.shape, generator=generator, dtype=torch.float64) for p in parameters]
    scale = size * norm(parameters) / norm(steps)
    for parameter, step in zip(parameters, steps, strict=True):
        parameter += (scale * step).to(parameter.device, parameter.dtype)
    if all(torch.equal(p, held) for p, held in zip(parameters, before, strict=True)):
        raise RecipeError(
            f"branch.perturbation: a step of {size:g} of the weights' norm changes none of them; "
            f"choose a larger one, such as 1e-3"
        )


def norm(tensors: list[Tensor] | list[nn.Parameter]) -> float:
    """Return the norm of all tensors taken together, in float64."""
    return sum(float(t.detach().double().square().sum()) for t in tensors) ** 0.5
