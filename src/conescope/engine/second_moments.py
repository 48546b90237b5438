"""preconditioner(): the diagonal by which an optimiser of torch multiplies gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from conescope.argument_types import checked
from conescope.engine.arguments import is_finite, unwrapped
from conescope.errors import KernelError

Settings = Mapping[str, Any]
"""A mapping by name: the state of a parameter, or the settings of a group of parameters."""


@checked
def preconditioner(optimizer: optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Read the diagonal P by which an optimiser multiplies gradients, from its second moments.

    Under Adam, small steps change the outputs by J P Jᵀ with P = diag(1 / (√v̂ + ε)) and v̂ as torch
    has it: corrected for its start, and its maximum so far with `amsgrad` (Kingma & Ba,
    arXiv:1412.6980; Malladi et al., arXiv:2210.05643, for kernels of Adam as descent by signs). So
    it is for AdamW and NAdam; RAdam's is rectified; RMSprop and Adagrad have 1 / (√v + ε), Adadelta
    √(u + ε) / √(v + ε) with u the moments of its steps, Adamax 1 / u with u its largest gradients.
    Of SGD, with momentum or without, P is 1: its kernel is the plain one. What all entries have in
    common (the learning rate, momentum's 1 / (1 − β)) is left out, since no kernel distance depends
    on it.

    Args:
        optimizer: one of torch.optim, after a step of its own or with a state that was loaded.
        model: the network that it trains, as it is or wrapped by `torch.compile` or for
            data-parallel training.

    Returns:
        Parameter name → entries of P, of the parameter's shape, for the parameters that the
        optimiser trains, as `entk(…, preconditioner=…)` takes them. They are relative to the
        largest learning rate of the optimiser's groups, and 0 for a parameter that has not had a
        step. An entry whose moment is 0, such as that of a token not seen yet, has 1 / ε. A
        complex entry has those of real and imaginary part in its parts.

    Raises:
        KernelError: if the optimiser multiplies by no diagonal that is known here, has not made a
            step, trains other parameters, or has moments that give NaN or infinite entries.
    """
    entries_of = _ENTRIES.get(type(optimizer))
    if entries_of is None:
        raise KernelError(
            f"{type(optimizer).__name__} multiplies gradients by no diagonal that is known here; "
            f"take one of {', '.join(kind.__name__ for kind in _ENTRIES)}, or give the entries "
            f"yourself: entk(…, preconditioner={{name: tensor}})"
        )
    names = {id(p): name for name, p in unwrapped(model).named_parameters()}
    rates = _rates(optimizer.param_groups)
    largest, has_stepped = max(rates), False
    found: dict[str, Tensor] = {}
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        for p in group["params"]:
            if id(p) not in names:
                raise KernelError(
                    f"the optimiser trains a tensor of shape {tuple(p.shape)} that is no parameter "
                    f"of the model; give the model that it was made for"
                )
            state = optimizer.state.get(p, {})
            entries = torch.zeros_like(p.detach())
            if entries_of is _of_sgd or float(state.get("step", 0)) > 0:
                has_stepped = True
                entries = _as_parameter(entries_of, state, group, p.detach())
            share = rate / largest if largest > 0 else 1.0
            found[names[id(p)]] = _finite(entries * share, names[id(p)], group)
    if not has_stepped:
        raise KernelError(
            f"{type(optimizer).__name__} has no second moments yet; call preconditioner() after "
            f"its first step, or load its state first"
        )
    return found


def _rates(groups: Sequence[Settings]) -> list[float]:
    """Return each group's learning rate, with what momentum makes of it in the long run.

    Where a schedule has ended at 0, the rates are those that it began with.

    Raises:
        KernelError: if some groups maximise and others minimise.
    """
    if len({bool(group.get("maximize", False)) for group in groups}) > 1:
        raise KernelError(
            "some groups of the optimiser maximise and others minimise, so that no kernel drives "
            "the outputs; give one of them its own optimiser"
        )
    rates = [float(group["lr"]) for group in groups]
    if not any(rates):
        rates = [float(group.get("initial_lr", 0.0)) for group in groups]
    for place, group in enumerate(groups):
        if momentum := float(group.get("momentum", 0.0)):
            rates[place] *= (1 - float(group.get("dampening", 0.0))) / (1 - momentum)
    return rates


def _as_parameter(entries_of: Entries, state: Settings, group: Settings, p: Tensor) -> Tensor:
    """Return the entries of a parameter; moments are those of real and imaginary parts apart."""
    if not p.is_complex():
        return entries_of(state, group, p)
    real = {
        name: torch.view_as_real(value)
        if isinstance(value, Tensor) and value.is_complex()
        else value
        for name, value in state.items()
    }
    return torch.view_as_complex(entries_of(real, group, torch.view_as_real(p)))


def _finite(entries: Tensor, name: str, group: Settings) -> Tensor:
    if not is_finite(torch.view_as_real(entries) if entries.is_complex() else entries):
        raise KernelError(
            f"the second moments of {name!r} give NaN or infinite entries (eps is "
            f"{group.get('eps')}); look at the training before this step, or take a larger eps"
        )
    return entries


def _of_sgd(state: Settings, group: Settings, p: Tensor) -> Tensor:
    del state, group
    return torch.ones_like(p)


def _of_adam(state: Settings, group: Settings, p: Tensor) -> Tensor:
    del p
    largest = group.get("amsgrad", False)
    root = state["max_exp_avg_sq" if largest else "exp_avg_sq"].sqrt()
    return 1 / (root / math.sqrt(_correction(state, group)) + group["eps"])


def _of_radam(state: Settings, group: Settings, p: Tensor) -> Tensor:
    """Return 1 for all entries while the variance of a second moment cannot be told, as torch."""
    step, beta = float(state["step"]), float(group["betas"][1])
    correction = _correction(state, group)
    most = 2 / (1 - beta) - 1
    length = most - 2 * step * beta**step / correction
    if length <= 5:
        return torch.ones_like(p)
    rectified = (length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)
    return math.sqrt(rectified * correction) / (state["exp_avg_sq"].sqrt() + group["eps"])


def _correction(state: Settings, group: Settings) -> float:
    return 1 - float(group["betas"][1]) ** float(state["step"])


def _of_rmsprop(state: Settings, group: Settings, p: Tensor) -> Tensor:
    del p
    moment = state["square_avg"]
    if group["centered"]:
        moment = moment - state["grad_avg"] ** 2
    return 1 / (moment.sqrt() + group["eps"])


def _of_adagrad(state: Settings, group: Settings, p: Tensor) -> Tensor:
    del p
    decay = 1 + (float(state["step"]) - 1) * float(group["lr_decay"])
    return 1 / (state["sum"].sqrt() + group["eps"]) / decay


def _of_adadelta(state: Settings, group: Settings, p: Tensor) -> Tensor:
    del p
    steps, gradients = state["acc_delta"], state["square_avg"]
    return ((steps + group["eps"]) / (gradients + group["eps"])).sqrt()


def _of_adamax(state: Settings, group: Settings, p: Tensor) -> Tensor:
    del group, p
    return 1 / state["exp_inf"]


Entries = Callable[[Settings, Settings, Tensor], Tensor]
_ENTRIES: dict[type[optim.Optimizer], Entries] = {
    optim.SGD: _of_sgd,
    optim.Adam: _of_adam,
    optim.AdamW: _of_adam,
    optim.NAdam: _of_adam,
    optim.RAdam: _of_radam,
    optim.RMSprop: _of_rmsprop,
    optim.Adagrad: _of_adagrad,
    optim.Adadelta: _of_adadelta,
    optim.Adamax: _of_adamax,
}
"""Optimiser → the entries of P, from the state and the settings of a parameter, and itself."""
