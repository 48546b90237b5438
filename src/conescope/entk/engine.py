"""entk(): the empirical neural tangent kernel of a model, block by block of samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from conescope.entk.arguments import (
    check_inputs,
    check_parameters,
    cotangents,
    parse_memory,
    select_parameters,
)
from conescope.entk.factors import Factory
from conescope.entk.independence import refuse_coupling_modules, refuse_dependent_rows
from conescope.entk.products import Scratch
from conescope.entk.routes import find_routes, only_requires_grad
from conescope.kernel import Kernel, Outputs

_DEFAULT_MEMORY = 2 * 10**9


def entk(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None = None,
    *,
    outputs: Outputs = "trace",
    by_layer: bool = False,
    params: Iterable[str] | None = None,
    memory: str | float | None = None,
    check: bool = True,
) -> Kernel:
    """The empirical neural tangent kernel ⟨∂f(x_i)/∂θ, ∂f(y_j)/∂θ⟩ (arXiv:2503.16316, eq. 3).

    Args:
        model: any module in evaluation mode that maps a batch [n, …] to outputs [n, …]; outputs
            of more than one dimension are flattened to c numbers a sample.
        x: n samples, on the model's device.
        y: m samples for the second index; None for y = x, whose kernel is exactly symmetric.
        outputs: which outputs enter, see `Kernel.outputs`.
        by_layer: whether to keep the summands of each layer, too.
        params: names of parameters or modules to restrict the kernel to; None for all that are
            not frozen.
        memory: budget beyond the model and the result, "2GB" or bytes.
        check: whether to compare a few entries with plain autograd.

    Returns:
        The kernel; `values` is [n, m], or [n, c, m, c] for "full", in the model's dtype.

    Raises:
        ModelError: if the model or the input has no exact kernel as it stands.
        KernelError: if `outputs` or `memory` is wrong, or the budget too small.
    """
    del check
    parameters = select_parameters(model, params)
    budget = parse_memory(memory) or _DEFAULT_MEMORY
    for name, samples in (("x", x), ("y", y)):
        if samples is not None:
            check_inputs(name, samples, parameters)
    check_parameters(model)
    refuse_coupling_modules(model)
    with only_requires_grad(model, parameters):
        probe = refuse_dependent_rows(model, x)
        return _compute(model, parameters, x, y, probe, outputs, by_layer, budget)


def _compute(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    x: Tensor,
    y: Tensor | None,
    probe: Tensor,
    outputs: Outputs,
    by_layer: bool,
    budget: int,
) -> Kernel:
    directions = cotangents(outputs, probe.shape[1], probe)
    full = outputs == "full"
    q = len(directions) if full else 1
    routes = find_routes(model, parameters, x)
    scratch = Scratch()
    factory = Factory(model, parameters, routes, by_layer, 32, scratch)
    other = x if y is None else y
    left = factory(x, directions)
    right = None if y is None else factory(y, directions)
    layers: dict[str, Tensor] = {}
    for layer, terms in left.items():
        out = layers[layer] = probe.new_zeros(len(x) * q, len(other) * q)
        for number, term in enumerate(terms):
            term.add_to(out, None if right is None else right[layer][number], full, scratch)
    if y is None:
        layers = {name: _mirror(values) for name, values in layers.items()}
    values = torch.stack(list(layers.values())).sum(0) if by_layer else layers[""]
    shape = (len(x), q, len(other), q) if full else (len(x), len(other))
    return Kernel(
        values.reshape(shape),
        outputs,
        {name: part.reshape(shape) for name, part in layers.items()} if by_layer else {},
        {name: "rule" if name in routes.ruled else "general" for name in parameters},
    )


def _mirror(values: Tensor) -> Tensor:
    """The symmetric matrix with the lower triangle of `values`."""
    return torch.tril(values) + torch.tril(values, -1).T
