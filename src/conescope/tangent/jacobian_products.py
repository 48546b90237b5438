"""Multiply vectors by the Jacobian of a whole network in its weights, whatever its operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.autograd.forward_ad as fwd
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointError

from conescope.errors import ModelError

Weights = dict[str, Tensor]
"""Parameter name → tensor of its shape."""

Route = Literal["forward", "reverse"]
"""Which derivatives a Jacobian-vector product is made of."""

_MISSING: dict[Route, tuple[str, str]] = {
    "forward": ("forward", 'linearise with route="reverse", which is equally exact and slower'),
    "reverse": ("second", 'linearise with route="forward"'),
}

_NEITHER = "_embedding_bag"
"""The operation for which torch has no derivative that either route needs."""

Output = Callable[[Weights], Tensor]
"""A network's output on some input, as a function of its weights."""


def forward_product(output: Output, point: Weights, direction: Weights) -> Tensor:
    """Return J·direction at `point` by forward derivatives, at three times the cost of the output.

    Raises:
        RuntimeError: from torch, if an operation has no forward derivative.
    """
    with torch.no_grad(), fwd.dual_level():
        duals = {name: fwd.make_dual(p.detach(), direction[name]) for name, p in point.items()}
        primal, tangent = fwd.unpack_dual(output(duals))
        return torch.zeros_like(primal) if tangent is None else tangent


def reverse_product(output: Output, point: Weights, direction: Weights) -> Tensor:
    """Return J·direction at `point` by two vector-Jacobian products.

    u ↦ Jᵀu is linear, and the transpose of its derivative is J.

    Raises:
        RuntimeError: from torch, if an operation's backward pass has no derivative.
    """
    with torch.enable_grad():
        leaves = {name: p.detach().requires_grad_() for name, p in point.items()}
        outputs = output(leaves)
        if not outputs.requires_grad:
            return torch.zeros_like(outputs)
        u = torch.zeros_like(outputs, requires_grad=True)
        transposed = torch.autograd.grad(
            outputs, list(leaves.values()), u, create_graph=True, materialize_grads=True
        )
        (product,) = torch.autograd.grad(
            transposed, u, [direction[name] for name in leaves], materialize_grads=True
        )
    return product


@contextmanager
def derivative_kernels(network: nn.Module) -> Iterator[None]:
    """Make torch choose implementations that have both forward and backward derivatives."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH), _without_fused_lstm(network):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@contextmanager
def _without_fused_lstm(network: nn.Module) -> Iterator[None]:
    onednn = torch.backends.mkldnn.enabled
    if not onednn or not any(isinstance(module, nn.LSTM) for module in network.modules()):
        yield
        return
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = onednn


@contextmanager
def refuse_missing_derivative(network: nn.Module, route: Route) -> Iterator[None]:
    """Turn torch's error about a missing derivative into one that names the module.

    Raises:
        ModelError: for a `RuntimeError` inside the context, other than a lack of memory.
    """
    inside: list[str] = []
    handles = []
    for name, module in network.named_modules():
        handles += [
            module.register_forward_pre_hook(lambda *_, name=name: inside.append(name)),
            module.register_forward_hook(lambda *_: inside.__delitem__(-1)),
        ]
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except CheckpointError as error:
        raise ModelError(
            "the network uses torch.utils.checkpoint, which computes a part again in the backward "
            "pass, and then with other weights; take it out before you linearise"
        ) from error
    except RuntimeError as error:
        where = f"module {inside[-1]!r}" if inside and inside[-1] else "the network"
        kind, cure = _MISSING[route]
        if _NEITHER in str(error):
            cure = "replace nn.EmbeddingBag by nn.Embedding and a sum, mean or maximum over tokens"
        raise ModelError(
            f"{where} has an operation without {kind} derivative "
            f"({str(error).splitlines()[0]}); {cure}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
