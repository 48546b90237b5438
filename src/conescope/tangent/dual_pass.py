"""Evaluate a traced network with dual numbers: values, their graph and tangents in one pass.

The common operations have rules here. A BatchNorm right after a convolution is folded into it: with
frozen statistics it is affine, and its derivative goes through the folded weight, which is small
where the activations are large.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.func import functional_call

from conescope.errors import ModelError
from conescope.tangent import dual
from conescope.tangent.dual import Dual
from conescope.tangent.fold import NormalisedConvolution, folded

Tangents = Mapping[int, Tensor]
"""The id of a weight → its tangent."""

_CONVOLUTIONS: dict[type[nn.Module], Callable[..., Tensor]] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
}
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_AFFINE = (nn.Linear, *_CONVOLUTIONS)
_LINEAR_LAYERS = (nn.Identity, nn.Flatten, nn.Dropout, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_SMOOTH = (nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.LayerNorm, nn.GroupNorm)
_MODULES = (*_AFFINE, *_NORMS, *_LINEAR_LAYERS, *_SMOOTH, nn.ReLU, nn.MaxPool2d)

_LINEAR_CALLS = (
    torch.flatten, operator.getitem, "contiguous", "flatten", "mean", "movedim", "reshape",
)  # fmt: skip
_RELUS = (F.relu, torch.relu)
_SUMS = (operator.add, operator.iadd, torch.add)
_OTHER_CALLS = (F.pad, torch.tanh)

_UNTRACEABLE = (
    TypeError, ValueError, RuntimeError, AttributeError, LookupError, NameError, AssertionError,
    ModelError,
)  # fmt: skip
"""The exceptions of a network that is called with a tracer's stand-in for a tensor."""


class DualPass(nn.Module):
    """A network that is evaluated with dual numbers.

    Args:
        network: in evaluation mode; under the name "network" its weights can be exchanged by
            `torch.func.functional_call`.
        graph: its operations, from `trace`.
    """

    def __init__(self, network: nn.Module, graph: fx.Graph):
        super().__init__()
        self.network = network
        self.graph = graph

    def forward(self, x: Tensor, tangents: Tangents) -> Dual:
        """Return the output, and its derivative along the tangents of the weights."""
        return _Walk(self.network, self.graph, tangents).run(Dual(x))


def trace(network: nn.Module) -> fx.Graph | None:
    """Return the network's operations in order; None if one has no rule here or is hidden."""
    modules = dict(network.named_modules())
    try:
        graph = fx.Tracer().trace(network)
    except _UNTRACEABLE:
        return None
    if not all(_is_known(node, modules) for node in graph.nodes):
        return None
    for node in list(graph.nodes):
        _fold(node, modules)
    for node in graph.nodes:
        node.meta["owned"] = _owns_input(node, modules)
    return graph


def _is_known(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    if node.op == "placeholder":
        return node.prev.op == "root"  # the one input
    if node.op == "output":
        return isinstance(node.args[0], fx.Node)
    if node.op == "call_module":
        module = modules[str(node.target)]
        in_place = getattr(module, "inplace", False)
        known = _is_known_module(module) and _takes_tensors_alone(node)
    else:
        in_place = node.target is operator.iadd or node.kwargs.get("inplace")
        if node.target in (*_LINEAR_CALLS, *_OTHER_CALLS):
            known = node.all_input_nodes == [node.args[0]]
        else:
            known = node.target in (*_SUMS, *_RELUS) and _takes_tensors_alone(node)
    return known and (not in_place or _owns_input(node, modules))


def _takes_tensors_alone(node: fx.Node) -> bool:
    return node.all_input_nodes == list(node.args) and not node.kwargs.keys() - {"inplace"}


def _is_known_module(module: nn.Module) -> bool:
    if type(module) not in _MODULES or module._forward_hooks or module._forward_pre_hooks:
        return False
    odd = getattr(module, "padding_mode", "zeros") != "zeros"
    return not odd and not getattr(module, "return_indices", False)


def _owns_input(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Return whether the first input is a fresh tensor that nothing else reads."""
    if not node.all_input_nodes:
        return False
    source = node.all_input_nodes[0]
    if source.op == "call_module":
        fresh = type(modules[str(source.target)]) in (*_AFFINE, *_NORMS)
    else:
        fresh = source.target in _SUMS
    return fresh and len(source.users) == 1


def _fold(node: fx.Node, modules: Mapping[str, nn.Module]) -> None:
    """Erase a BatchNorm that is the only reader of a convolution's output."""
    if node.op != "call_module" or type(modules[str(node.target)]) not in _NORMS:
        return
    source = node.all_input_nodes[0]
    if source.op != "call_module" or len(source.users) > 1 or "norm" in source.meta:
        return
    convolution = modules[str(source.target)]
    if type(convolution) in _CONVOLUTIONS and not isinstance(convolution.padding, str):
        source.meta["norm"] = node.target
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)


class _Walk(fx.Interpreter):
    """An evaluation of the network, node by node."""

    def __init__(self, network: nn.Module, graph: fx.Graph, tangents: Tangents):
        super().__init__(network, graph=graph)
        self.tangents = tangents

    def run_node(self, n: fx.Node) -> Any:
        """Return the value of a node, a `Dual`."""
        if n.op in ("placeholder", "output"):
            return super().run_node(n)
        arguments, options = self.fetch_args_kwargs_from_env(n)
        if n.op == "call_module":
            return self._module(n, self.fetch_attr(str(n.target)), *arguments)
        if n.target in _SUMS:
            return dual.add(*arguments)
        x, *rest = arguments
        if n.target in _RELUS:
            return dual.relu(x, n.meta["owned"])
        function: Callable[..., Tensor] = (
            getattr(Tensor, n.target) if isinstance(n.target, str) else n.target
        )
        rule = dual.linear if n.target in _LINEAR_CALLS else dual.call
        return rule(lambda tensor: function(tensor, *rest, **options), x)

    def _module(self, node: fx.Node, module: Any, x: Dual) -> Dual:
        if isinstance(module, nn.ReLU):
            return dual.relu(x, node.meta["owned"])
        if isinstance(module, _LINEAR_LAYERS):
            return dual.linear(module, x)
        if isinstance(module, nn.MaxPool2d):
            return dual.max_pool2d(_indexed_pool(module), x)
        if type(module) not in _AFFINE:
            return self._smooth(module, x)
        weight, bias = self._weight(module.weight), self._optional(module.bias)
        if norm := node.meta.get("norm"):
            return self._normalised(module, self.fetch_attr(norm), x, weight, bias)
        return dual.affine(_product(module), x, weight, bias)

    def _weight(self, weight: Tensor) -> Dual:
        return Dual(weight, self.tangents.get(id(weight)))

    def _optional(self, weight: Tensor | None) -> Dual | None:
        return None if weight is None else self._weight(weight)

    def _smooth(self, module: Any, x: Dual) -> Dual:
        names = [name for name, _ in module.named_parameters()]
        if isinstance(module, nn.GroupNorm):  # torch has no forward derivative for channels_last
            x = dual.linear(Tensor.contiguous, x)

        def function(x: Tensor, *weights: Tensor) -> Tensor:
            return functional_call(module, dict(zip(names, weights, strict=True)), (x,))

        return dual.call(function, x, *(self._weight(getattr(module, name)) for name in names))

    def _normalised(
        self, convolution: Any, norm: Any, x: Dual, weight: Dual, bias: Dual | None
    ) -> Dual:
        gamma, beta = self._optional(norm.weight), self._optional(norm.bias)
        weight, bias = folded(norm, weight, bias, gamma, beta)
        primal = NormalisedConvolution.apply(
            x.primal, weight.primal, bias.primal, convolution, norm
        )
        return Dual(primal, dual.affine_tangent(_product(convolution), x, weight, bias))


def _indexed_pool(module: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return partial(
        F.max_pool2d_with_indices,
        kernel_size=module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        ceil_mode=module.ceil_mode,
    )


def _product(module: Any) -> Callable[..., Tensor]:
    if isinstance(module, nn.Linear):
        return F.linear
    return partial(
        _CONVOLUTIONS[type(module)],
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
    )
