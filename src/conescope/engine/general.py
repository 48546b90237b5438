"""The general route: per-sample gradients of any parameter of any module.

Transforms of `torch.func` take them where they can follow the module; otherwise one plain autograd
pass for each sample and output does, which works on whatever autograd can differentiate.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.func import functional_call, jacrev, vmap

from conescope.engine.arguments import Cotangents
from conescope.engine.compute.budget import Work
from conescope.engine.compute.products import add_gram
from conescope.engine.tracing.forward import (
    RoutesChangedError,
    attempted,
    describe_failure,
    feedable,
    forward,
    reachable,
    refuse_other_outputs,
)
from conescope.engine.tracing.routes import Routes
from conescope.engine.tracing.survey import Assignment, Survey, layer_of, real_numbers
from conescope.engine.tracing.writes import same_attributes, writes_weights
from conescope.errors import ModelError

Gradients = dict[str, Tensor]
"""Parameter name → gradients in real numbers, of the shape that the function names."""
Scaled = Callable[[str, Tensor], Tensor]

_FEW = 2**24
"""With more parameters, a pass of one sample takes so long that a plain loop costs no more than a
transform, which needs more memory."""


def complete(
    routes: Routes, model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor
) -> Routes:
    """Add to the routes how gradients of the parameters without a rule are taken."""
    chosen = {name: parameters[name] for name in routes.general}
    if not chosen:
        return routes
    transformed, reentrant = _general_method(model, chosen, x)
    return replace(routes, transformed=transformed, reentrant=reentrant)


def without_rules(
    known: Survey, model: nn.Module, parameters: Mapping[str, nn.Parameter], pair: Tensor
) -> Survey:
    """Return the survey of the same model with every parameter on the general route."""
    general = Routes((), tuple(parameters), provisional=known.routes.provisional)
    routes = complete(general, model, parameters, pair)
    work = Work(
        known.work.passing,
        known.work.width,
        general={name: real_numbers(p) for name, p in parameters.items()},
        transformed=routes.transformed,
    )
    return Survey(routes, Assignment(), work, known.like)


def _general_method(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor
) -> tuple[bool, bool]:
    """Find out which of the two methods parameters without a rule can take.

    A transform of torch.func puts other tensors in the places of the parameters. It may take them
    if autograd's graph then no longer leads to the parameters themselves, as it does where a
    model reaches them by a list, a closure or a view.

    Args:
        model: the network; the parameters require gradients.
        parameters: those without a rule, by name.
        x: a few samples.

    Returns:
        Whether `transformed_gradients` follows them, and whether there is a re-entrant checkpoint.
    """
    outputs = forward(model, feedable(x))
    _, reentrant = reachable(outputs, parameters)
    first = outputs.detach().new_ones(1, outputs.shape[1])
    second = Cotangents.normal(outputs.shape[1], 0, first).part(0, 1)
    del outputs
    few = sum(p.numel() for p in parameters.values()) <= _FEW
    odd = any(p.is_complex() or p._backward_hooks for p in parameters.values())
    if not few or reentrant or odd:
        return False, reentrant
    if writes_weights(model):  # torch.func may crash the process then
        return False, reentrant
    copies = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    try:
        with attempted(), same_attributes(model):
            replaced = functional_call(model, copies, (feedable(x),))
            reached, opaque = reachable(replaced, parameters)
        transformed_gradients(model, parameters, x, first)
        right = _keeps_cotangents_apart(model, parameters, x[:1], torch.cat([first, second]))
    except RoutesChangedError:
        return False, reentrant
    return right and not reached and not opaque, reentrant


def _keeps_cotangents_apart(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor, cotangents: Tensor
) -> bool:
    """Return whether a transform gives each of several cotangents the gradients of that one alone.

    PyTorch's backward pass of `torch.cdist`, for one, gives all of them those of the first.
    """
    together = transformed_gradients(model, parameters, x, cotangents)
    for k in range(len(cotangents)):
        alone = transformed_gradients(model, parameters, x, cotangents[k : k + 1])
        for name, gradients in alone.items():
            single, found = gradients[:, 0], together[name][:, k]
            dtype = torch.promote_types(single.dtype, torch.float32)  # norms overflow float16
            bound = torch.finfo(single.dtype).eps ** 0.5 * single.to(dtype).norm()
            if bool((found - single).to(dtype).norm() > bound):
                return False
    return True


def transformed_gradients(
    model: nn.Module, parameters: Mapping[str, nn.Parameter], x: Tensor, cotangents: Tensor
) -> Gradients:
    """Return per-sample gradients, [b, q, p] each, by transforms of `torch.func`.

    Args:
        model: the network.
        parameters: of real numbers, by name.
        x: [b, …].
        cotangents: [q, c].

    Raises:
        RoutesChangedError: if the module does something that `vmap` cannot follow.
    """

    def project(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return cotangents @ functional_call(model, weights, (sample[None],)).reshape(-1)

    weights = {name: p.detach() for name, p in parameters.items()}
    with attempted(), same_attributes(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        jacobians = vmap(jacrev(project), in_dims=(None, 0))(weights, x.clone())
    return {name: j.detach().reshape(*j.shape[:2], -1) for name, j in jacobians.items()}


def plain_gradients(
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    x: Tensor,
    cotangents: Tensor,
    reentrant: bool,
) -> Iterator[tuple[int, int, Gradients]]:
    """Compute per-sample gradients by one plain autograd pass for each sample and cotangent.

    Args:
        model: the network; the parameters require gradients.
        parameters: by name.
        x: [b, …].
        cotangents: [q, c].
        reentrant: whether there is a re-entrant checkpoint, see `Routes`.

    Yields:
        Numbers of the sample and the cotangent, and parameter name → gradient [p]; parameters
        whose gradient is zero everywhere may be absent.

    Raises:
        ModelError: if autograd cannot follow the model either.
    """
    for i in range(len(x)):
        outputs = forward(model, feedable(x[i : i + 1]))
        refuse_other_outputs(outputs, cotangents.shape[1])
        outputs = outputs[0]
        for k, cotangent in enumerate(cotangents):
            last = k == len(cotangents) - 1
            projection = cotangent @ outputs
            try:
                gradients = autograd_gradients(projection, model, parameters, reentrant, not last)
            except RuntimeError as error:
                raise ModelError(
                    f"autograd cannot follow the model: {describe_failure(error, model)}; make its "
                    "forward pass one of differentiable operations of torch"
                ) from error
            yield i, k, gradients
            del gradients  # before the next ones are computed


def autograd_gradients(
    scalar: Tensor,
    model: nn.Module,
    parameters: Mapping[str, nn.Parameter],
    reentrant: bool,
    retain: bool,
) -> Gradients:
    """Return ∂scalar/∂θ by plain autograd, name → gradient [p]; zero gradients may be absent.

    Args:
        scalar: the number that is differentiated.
        model: the network, whose own gradients are kept.
        parameters: by name.
        reentrant: whether there is a re-entrant checkpoint; these refuse `autograd.grad`.
        retain: whether the graph is needed again.
    """
    if not scalar.requires_grad:
        return {}
    if not reentrant:
        found = torch.autograd.grad(
            scalar, list(parameters.values()), retain_graph=retain, allow_unused=True
        )
        named = zip(parameters, found, strict=True)
        return {name: _as_real(g) for name, g in named if g is not None}
    kept = [(p, p.grad) for p in model.parameters()]
    hooks = [(p, dict(h)) for p, _ in kept if (h := p._post_accumulate_grad_hooks)]
    try:
        for p, _ in kept:
            p.grad = None
        for p, _ in hooks:  # an optimiser that steps in the backward pass
            p._post_accumulate_grad_hooks.clear()  # pyright: ignore[reportOptionalMemberAccess]
        scalar.backward(retain_graph=retain)
        return {name: _as_real(p.grad) for name, p in parameters.items() if p.grad is not None}
    finally:
        for p, gradient in kept:
            p.grad = gradient
        for p, found in hooks:
            p._post_accumulate_grad_hooks.update(found)  # pyright: ignore[reportOptionalMemberAccess]


def _as_real(gradient: Tensor) -> Tensor:
    """Return a gradient as a vector of real numbers; that of z is ∂/∂Re z + i ∂/∂Im z."""
    gradient = gradient.to_dense() if gradient.layout is not torch.strided else gradient
    if gradient.is_complex():
        gradient = torch.view_as_real(gradient.resolve_conj())
    return gradient.detach().flatten()


class AutogradNorms:
    """Squared norms of the gradients that plain autograd takes in the pass that rules record.

    Args:
        parameters: those whose gradients are taken, by name; they are part of autograd's graph.
        scaled: multiplies a parameter's gradient [p], given its name, as the kernel has it.

    Attributes:
        squares: layer → ‖Σ_i ∂(v·f(x_i))/∂θ‖² of its parameters.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], scaled: Scaled) -> None:
        self._parameters, self._scaled = parameters, scaled
        self.squares: dict[str, float] = dict.fromkeys(map(layer_of, parameters), 0.0)

    def add(
        self, outputs: Tensor, targets: Sequence[GradientEdge], cotangent: Tensor, retain: bool
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients at the targets, and add up those of the parameters.

        Args:
            outputs: [b, c], of all samples whose gradients are added.
            targets: where the rules take gradients.
            cotangent: v, [c].
            retain: whether the graph is needed again.
        """
        places = [*targets, *map(get_gradient_edge, self._parameters.values())]
        found = torch.autograd.grad(
            outputs,
            places,
            cotangent.expand_as(outputs),
            retain_graph=retain,
            allow_unused=True,
        )
        for name, gradient in zip(self._parameters, found[len(targets) :], strict=True):
            if gradient is not None:
                self.squares[layer_of(name)] += squared_norm(self._scaled(name, _as_real(gradient)))
        return found[: len(targets)]


def squared_norm(gradient: Tensor) -> float:
    """Return the squared norm of [p] in float64, without copying it to float64."""
    row = gradient.to(torch.promote_types(gradient.dtype, torch.float32))[None]
    gram = row.new_zeros(1, 1, dtype=torch.float64)
    add_gram(gram, row, None)
    return float(gram)


def square_of_difference(first: Tensor | None, second: Tensor | None) -> float:
    """Return ‖first − second‖², where None is zero."""
    present = [g for g in (first, second) if g is not None]
    if not present:
        return 0.0
    return squared_norm(present[0] if len(present) == 1 else present[0] - present[1])
