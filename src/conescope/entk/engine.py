"""entk(): the empirical neural tangent kernel of a model, block by block of samples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from conescope.entk.arguments import (
    check_inputs,
    check_parameters,
    cotangents,
    parse_memory,
    select_parameters,
)
from conescope.entk.general import Gradients, loop_gradients, vmap_gradients
from conescope.entk.independence import forward, refuse_coupling_modules, refuse_dependent_rows
from conescope.errors import KernelError
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
    refuse_dependent_rows(model, x)
    with _only_requires_grad(model, parameters):
        return _blocks(model, parameters, x, y, outputs, by_layer, budget)


def _blocks(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    x: Tensor,
    y: Tensor | None,
    outputs: Outputs,
    by_layer: bool,
    budget: int,
) -> Kernel:
    with torch.no_grad():
        probe = forward(model, x[:1])
    directions = cotangents(outputs, probe.shape[1], probe)
    count = sum(p.numel() for p in parameters.values())
    need = count * len(directions) * probe.element_size() * 4
    block = budget // need
    if block < 1:
        raise KernelError(f"memory={budget} bytes is too small for one sample: {need} are needed")
    gradients = _Gradients(model, parameters, directions)
    full = outputs == "full"
    q = len(directions) if full else 1
    other = x if y is None else y
    layers: dict[str, Tensor] = {}
    for start in range(0, len(x), block):
        rows = gradients(x[start : start + block])
        for begin in range(start if y is None else 0, len(other), block):
            same = y is None and begin == start
            columns = rows if same else gradients(other[begin : begin + block])
            for name, left in rows.items():
                layer = name.rpartition(".")[0] or name if by_layer else ""
                if layer not in layers:
                    layers[layer] = probe.new_zeros(len(x) * q, len(other) * q)
                place = layers[layer].narrow(0, start * q, len(left) * q)
                right = columns[name]
                place = place.narrow(1, begin * q, len(right) * q)
                shape = (-1, left.shape[-1]) if full else (len(left), -1)
                place += left.reshape(shape) @ right.reshape(-1, left.reshape(shape).shape[1]).T
    if y is None:
        layers = {name: _mirror(values) for name, values in layers.items()}
    values = torch.stack(list(layers.values())).sum(0)
    shape = (len(x), q, len(other), q) if full else (len(x), len(other))
    return Kernel(
        values.reshape(shape),
        outputs,
        {name: part.reshape(shape) for name, part in layers.items()} if by_layer else {},
        {name: gradients.route for name in parameters},
    )


class _Gradients:
    """Per-sample gradients by `vmap`, or by the loop from the first time that `vmap` fails."""

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, nn.Parameter], directions: Tensor
    ) -> None:
        self.arguments = (model, parameters, directions)
        self.route = "vmap"

    def __call__(self, x: Tensor) -> Gradients:
        model, parameters, directions = self.arguments
        if self.route == "vmap":
            try:
                return vmap_gradients(model, parameters, x, directions)
            except RuntimeError:
                self.route = "loop"
        return loop_gradients(model, parameters, x, directions)


def _mirror(values: Tensor) -> Tensor:
    """The symmetric matrix with the upper triangle of `values`."""
    return torch.triu(values) + torch.triu(values, 1).T


@contextmanager
def _only_requires_grad(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Let exactly these parameters require gradients, and restore the flags afterwards."""
    chosen = set(map(id, parameters.values()))
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        for p, _ in flags:
            p.requires_grad_(id(p) in chosen)
        yield
    finally:
        for p, flag in flags:
            p.requires_grad_(flag)
