"""linearize(): a network's first-order Taylor model in its weights, as a module to train."""

from __future__ import annotations

import copy
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from conescope.argument_types import checked
from conescope.errors import ModelError
from conescope.tangent.dual_pass import DualPass, trace
from conescope.tangent.jacobian_products import (
    Route,
    Weights,
    derivative_kernels,
    forward_product,
    refuse_missing_derivative,
    reverse_product,
)

LINEARIZATION_POINT = "linearization_point"
"""Under this name a linearised model's state dict holds θ_t."""
_VERIFIED_SAMPLES = 4
_TOLERANCE = 0.01  # far above rounding (TF32's too), far below what a missing term makes


@checked
def linearize(model: nn.Module, route: Route = "forward") -> LinearizedModel:
    """Build the first-order Taylor model of a network at its weights θ_t (arXiv:2503.16316).

    f_lin(x; θ) = f(x; θ_t) + J(x; θ_t)(θ − θ_t), to be trained in θ by any optimiser of torch.
    The network is taken in evaluation mode, whatever its mode now or later: dropout is off, and
    BatchNorm keeps its running statistics (to estimate them anew, hand over
    `conescope.measuring.undisturbed.recalibrated(model, inputs)`).

    Args:
        model: from inputs [n, …] to one tensor [n, …]; copied, and left as it is.
        route: how J(θ − θ_t) is computed. "forward": forward derivatives, in one pass together
            with the network's output if every operation has a rule in `dual_pass`, otherwise in
            a pass of their own. "reverse": two backward passes; equally exact, slower, and for
            networks with operations that lack a forward derivative.

    Raises:
        ModelError: if the model has nothing to train, has lazy parameters, is linearised already,
            or has a BatchNorm without running statistics; or if the route is neither of these.
    """
    return LinearizedModel(model, route)


@checked
class LinearizedModel(nn.Module):
    """A network's Taylor model, made by `linearize`.

    Parameters and buffers carry the network's names, so that
    `network.load_state_dict(linearized.state_dict(), strict=False)` takes the trained weights
    back. θ_t are buffers under "linearization_point". What is frozen in the network is constant.
    Gradients reach the weights, not the input, and do not depend on θ: autograd refuses a second
    derivative. torch's autocast lowers the one pass over the network; where output and derivative
    take two, they keep the weights' precision, since BatchNorm has no forward derivative there.

    Attributes:
        route: which derivatives are used, "forward" or "reverse".
        one_pass: whether output and derivative come from one pass over the network.
    """

    def __init__(self, model: nn.Module, route: Route):
        _check(model, route)
        super().__init__()
        network = copy.deepcopy(model).eval().requires_grad_(False)
        graph = trace(network) if route == "forward" else None
        self.route: Route = route
        self.one_pass = graph is not None
        self._verified = False
        # in a tuple they are not registered as children: their weights are replaced in every pass
        self._passes = (network, None if graph is None else DualPass(network, graph))
        self.add_module(LINEARIZATION_POINT, nn.Module())
        _add_members(self, model, {})
        for name, p in model.named_parameters():
            if p.requires_grad:
                value = network.get_parameter(name).detach()
                _add_buffer(self.get_submodule(LINEARIZATION_POINT), name, value)

    def forward(self, x: Tensor) -> Tensor:
        """Return f_lin(x; θ), from [n, …] to [n, …].

        Raises:
            ModelError: if the output is no tensor, if an operation lacks the derivative that the
                route needs (its module is named), or if, at the first call, the derivative is
                not that of plain autograd.
        """
        point = dict(self.get_submodule(LINEARIZATION_POINT).named_buffers())
        x = _of_one_type(x.detach(), next(iter(point.values())))
        if not self._verified:
            with torch.autocast(x.device.type, enabled=False):  # it compares to within rounding
                self._verify(x[:_VERIFIED_SAMPLES], point)
            self._verified = True
        theta = dict(self.named_parameters())
        direction = {name: theta[name].detach() - p for name, p in point.items()}
        held = {name: _HeldAt.apply(theta[name], p) for name, p in point.items()}
        output, derivative = self._evaluate(x, held, direction)
        return output + derivative

    def _evaluate(self, x: Tensor, point: Weights, direction: Weights) -> tuple[Tensor, Tensor]:
        """Return the network's output with its graph, and J·direction without one."""
        network, dual_pass = self._passes
        with derivative_kernels(network):
            if dual_pass is not None:
                weights = {f"network.{n}": t for n, t in (self._constants() | point).items()}
                tangents = {id(p): direction[name] for name, p in point.items()}
                dual = functional_call(dual_pass, weights, (x, tangents))
                return dual.primal, dual.derivative()
            with torch.autocast(x.device.type, enabled=False):
                return self._evaluate_in_two(x, point, direction)

    def _evaluate_in_two(
        self, x: Tensor, point: Weights, direction: Weights
    ) -> tuple[Tensor, Tensor]:
        output = self._output(x, point)
        if not isinstance(output, Tensor):
            raise ModelError(
                f"the network returns a {type(output).__name__}; linearise a module that "
                f"returns one tensor of outputs"
            )
        product = reverse_product if self.route == "reverse" else forward_product
        with refuse_missing_derivative(self._passes[0], self.route):
            return output, product(lambda w: self._output(x, w), point, direction)

    def _output(self, x: Tensor, weights: Weights) -> Tensor:
        return functional_call(self._passes[0], self._constants() | weights, (x,))

    def _constants(self) -> Weights:
        """Return the buffers and frozen parameters of the network."""
        members = (*self.named_parameters(), *self.named_buffers())
        point = {name for name, _ in self.get_submodule(LINEARIZATION_POINT).named_buffers()}
        return {
            n: t.detach()
            for n, t in members
            if n not in point and not n.startswith(LINEARIZATION_POINT)
        }

    @torch.enable_grad()
    def _verify(self, x: Tensor, point: Weights) -> None:
        """Compare the derivative with plain autograd: ⟨Jv, Jv⟩ = ⟨v, JᵀJv⟩ for one direction v.

        They differ if a network computes something under `torch.no_grad`, which forward
        derivatives, unlike backward ones, pass through; or if its output is random.
        """
        leaves = {name: p.clone().requires_grad_() for name, p in point.items()}
        v = {name: _any_direction(p) for name, p in point.items()}
        found, Jv = self._evaluate(x, leaves, v)
        with derivative_kernels(self._passes[0]):
            output = self._output(x, leaves)
        if torch.norm(found - output) > _TOLERANCE * torch.norm(output):
            raise ModelError(
                "the network gives two outputs for one input in evaluation mode, so it has no "
                "Taylor model; is there a dropout that ignores the mode, or other randomness?"
            )
        if not output.requires_grad:
            raise ModelError(
                "the output does not depend on any weight that is not frozen; unfreeze weights "
                "that it depends on"
            )
        with refuse_missing_derivative(self._passes[0], self.route):
            JTJv = torch.autograd.grad(output, list(leaves.values()), Jv, materialize_grads=True)
        transposed = sum((g * v[name]).sum() for name, g in zip(leaves, JTJv, strict=True))
        norm = (Jv * Jv).sum()
        if abs(transposed - norm) > _TOLERANCE * norm:
            raise ModelError(
                f"the network's forward derivative is not that of its backward pass: for one "
                f"direction v, |Jv|² is {norm:.6g} and vᵀJᵀJv is {transposed:.6g}; is part of it "
                f'under torch.no_grad()? Linearise with route="reverse", which follows the '
                f"backward pass"
            )


class _HeldAt(torch.autograd.Function):
    """A function whose value is θ_t, and which passes its gradient on to θ.

    A network evaluated with it has the output at θ_t, and gives its gradients Jᵀu to θ.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(_theta: Tensor, point: Tensor) -> Tensor:
        """Return θ_t, from θ and θ_t."""
        return point.view_as(point)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep nothing: the derivative is the identity."""

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ARG004
        *gradients: Tensor,
    ) -> tuple[Tensor, None]:
        """Return the output's gradient as that of θ."""
        return gradients[0], None


def _of_one_type(x: Tensor, weight: Tensor) -> Tensor:
    """Give an input under autocast the weights' type, for what is computed without autocast."""
    is_lowered = torch.is_autocast_enabled(x.device.type) and x.is_floating_point()
    return x.to(weight.dtype) if is_lowered and x.dtype != torch.float64 else x


def _any_direction(like: Tensor) -> Tensor:
    """Return irregular numbers in [−1, 1], without using torch's random generators."""
    return torch.arange(like.numel(), device=like.device).cos().to(like.dtype).view_as(like)


def _add_members(target: nn.Module, source: nn.Module, copies: dict[int, Any]) -> None:
    """Give the target the source's parameters, buffers and children; tied ones stay tied."""
    members = (*source._parameters, *source._buffers, *source._modules)
    for name in members:
        if hasattr(target, name):
            raise ModelError(f"a linearised model has an attribute {name!r} itself; rename yours")
    for name, p in source._parameters.items():
        if p is not None and id(p) not in copies:
            copies[id(p)] = nn.Parameter(p.detach().clone(), p.requires_grad)
        target.register_parameter(name, None if p is None else copies[id(p)])
    for name, b in source._buffers.items():
        if b is not None and id(b) not in copies:
            copies[id(b)] = b.clone()
        persistent = name not in source._non_persistent_buffers_set
        target.register_buffer(name, None if b is None else copies[id(b)], persistent)
    for name, child in source.named_children():
        target.add_module(name, nn.Module())
        _add_members(target.get_submodule(name), child, copies)


def _add_buffer(root: nn.Module, path: str, value: Tensor) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    root.register_buffer(name, value)


def _check(model: nn.Module, route: str) -> None:
    if route not in get_args(Route):
        raise ModelError(f'route is {route!r}; choose "forward" or "reverse"')
    for name, module in model.named_modules():
        if isinstance(module, LinearizedModel):
            raise ModelError(
                "the model is linearised already: its Taylor model is itself; use it as it is"
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ModelError(
                f"{name or 'the model'} is a BatchNorm without running statistics, which a "
                f"linearised model freezes; build it with track_running_stats=True"
            )
    if any(is_lazy(p) for p in model.parameters()):
        raise ModelError("the model has lazy parameters without a shape; call it on a batch first")
    if not any(p.requires_grad for p in model.parameters()):
        raise ModelError(
            "the model has no trainable parameters; unfreeze some with requires_grad_(True)"
        )
