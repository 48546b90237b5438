"""What is asked of the engine, checked: a model, samples, and the directions of the outputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conescope.entk.arguments import (
    check_inputs,
    check_parameters,
    cotangents,
    select_parameters,
)
from conescope.entk.independence import refuse_coupling_modules, refuse_dependent_rows
from conescope.entk.routes import only_requires_grad
from conescope.entk.survey import Survey, survey_model
from conescope.kernel import Outputs


@dataclass(frozen=True)
class Problem:
    """One kernel to be computed.

    Attributes:
        model: the network.
        parameters: those whose kernel is wanted, by name.
        x: n samples.
        y: m samples, or None for x itself.
        outputs: the convention.
        directions: [q, c], the cotangents it means.
        survey: of the model.
    """

    model: nn.Module
    parameters: dict[str, nn.Parameter]
    x: Tensor
    y: Tensor | None
    outputs: Outputs
    directions: Tensor
    survey: Survey


@torch.inference_mode(mode=False)
@torch.enable_grad()
def prepare(
    model: nn.Module, x: Tensor, y: Tensor | None, outputs: Outputs, params: Iterable[str] | None
) -> Problem:
    """Check everything that can be checked on two samples, and survey the model.

    Raises:
        ModelError: if the model or the samples have no exact kernel as they stand.
        KernelError: if `outputs` is wrong.
    """
    parameters = select_parameters(model, params)
    for name, samples in (("x", x), ("y", y)):
        if samples is not None:
            check_inputs(name, samples, parameters)
    check_parameters(model)
    refuse_coupling_modules(model)
    with only_requires_grad(model, parameters):
        probe = refuse_dependent_rows(model, x)
    directions = cotangents(outputs, probe.shape[1], probe)
    return Problem(model, parameters, x, y, outputs, directions, survey_model(model, parameters, x))
