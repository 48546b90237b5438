"""The preconditioner of an optimiser's state, against the steps that torch makes with it."""

from __future__ import annotations

import pytest
import torch
from torch import nn, optim

import conescope as cs
from conescope.errors import KernelError

STEPS = 12
"""Enough for RAdam, which begins to divide after five."""


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def train(model: nn.Module, optimizer: optim.Optimizer, steps: int = STEPS) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(6, 4, generator=generator, dtype=torch.float64)
        model(x.to(next(model.parameters()).dtype)).pow(2).sum().backward()
        optimizer.step()


OPTIMISERS = {
    "sgd": lambda p, **o: optim.SGD(p, lr=0.1, **o),
    "adam": lambda p, **o: optim.Adam(p, lr=0.1, betas=(0.0, 0.95), **o),
    "amsgrad": lambda p, **o: optim.Adam(p, lr=0.1, betas=(0.0, 0.7), amsgrad=True, **o),
    "large eps": lambda p, **o: optim.Adam(p, lr=0.1, betas=(0.0, 0.95), eps=0.5, **o),
    "adamw": lambda p, **o: optim.AdamW(p, lr=0.1, betas=(0.0, 0.95), weight_decay=0.0, **o),
    "nadam": lambda p, **o: optim.NAdam(p, lr=0.1, betas=(0.0, 0.95), **o),
    "radam": lambda p, **o: optim.RAdam(p, lr=0.1, betas=(0.0, 0.95), **o),
    "rmsprop": lambda p, **o: optim.RMSprop(p, lr=0.1, **o),
    "centred rmsprop": lambda p, **o: optim.RMSprop(p, lr=0.1, centered=True, **o),
    "adagrad": lambda p, **o: optim.Adagrad(p, lr=0.1, **o),
    "adamax": lambda p, **o: optim.Adamax(p, lr=0.1, betas=(0.0, 0.9), **o),
}
"""Without a first moment, a step is the gradient times lr P, with P of the state after it."""


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("name", OPTIMISERS)
def test_a_step_without_momentum_is_the_gradient_times_p(name: str, foreach: bool):
    model = network()
    optimizer = OPTIMISERS[name](model.parameters(), foreach=foreach)
    for _ in range(STEPS):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        train(model, optimizer, 1)
        found = cs.preconditioner(optimizer, model)
        rate = 0.1 / (1 - optimizer.param_groups[0]["betas"][0]) if name == "adamax" else 0.1
        for n, p in model.named_parameters():
            torch.testing.assert_close(before[n] - rate * found[n] * p.grad, p.detach())


@pytest.mark.parametrize("steps", [1, 3, STEPS])
def test_adams_entries_by_hand(steps: int):
    model, beta, eps = network(), 0.98, 1e-4
    optimizer = optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, beta), eps=eps)
    moments = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for _ in range(steps):
        train(model, optimizer, 1)
        for n, p in model.named_parameters():
            moments[n] = beta * moments[n] + (1 - beta) * p.grad**2
    for n, entries in cs.preconditioner(optimizer, model).items():
        expected = 1 / ((moments[n] / (1 - beta**steps)).sqrt() + eps)
        torch.testing.assert_close(entries, expected, rtol=1e-12, atol=0)


def test_adadeltas_entries_by_hand():
    """They are those of the state: the moments of the steps that were, not of the one to come."""
    model, rho, eps = network(), 0.9, 1e-3
    optimizer = optim.Adadelta(model.parameters(), lr=1.0, rho=rho, eps=eps)
    squares = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    deltas = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for _ in range(3):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        train(model, optimizer, 1)
        for n, p in model.named_parameters():
            squares[n] = rho * squares[n] + (1 - rho) * p.grad**2
            deltas[n] = rho * deltas[n] + (1 - rho) * (p.detach() - before[n]) ** 2
    for n, entries in cs.preconditioner(optimizer, model).items():
        torch.testing.assert_close(entries, ((deltas[n] + eps) / (squares[n] + eps)).sqrt())


def test_complex_moments_are_those_of_the_parts():
    weight = nn.Parameter(torch.complex(torch.randn(4), torch.randn(4)).to(torch.complex128))
    model = nn.Module()
    model.weight = weight
    optimizer = optim.Adam([weight], lr=0.1, betas=(0.0, 0.95))
    for _ in range(3):
        before = weight.detach().clone()
        weight.grad = torch.complex(torch.randn(4), torch.randn(4)).to(torch.complex128)
        optimizer.step()
    found = torch.view_as_real(cs.preconditioner(optimizer, model)["weight"])
    step = torch.view_as_complex(found * torch.view_as_real(weight.grad))
    torch.testing.assert_close(before - 0.1 * step, weight.detach())


def test_learning_rates_of_groups_are_relative_to_the_largest():
    model = network()
    groups = [
        {"params": model[0].parameters(), "lr": 0.05},
        {"params": model[2].parameters(), "lr": 0.2},
    ]
    found = cs.preconditioner(optim.SGD(groups, momentum=0.9), model)
    assert all(torch.equal(found[n], torch.ones_like(found[n])) for n in ("2.weight", "2.bias"))
    assert all(bool((found[n] == 0.25).all()) for n in ("0.weight", "0.bias"))
    stopped = optim.SGD(model.parameters(), lr=0.0)
    assert all(bool((entries == 1).all()) for entries in cs.preconditioner(stopped, model).values())


def grouped(kind, model, first, second):
    """An optimiser of two groups with options of their own, after some steps."""
    groups = [
        {"params": model[0].parameters(), **first},
        {"params": model[2].parameters(), **second},
    ]
    optimizer = kind(groups, lr=0.01)
    train(model, optimizer)
    return optimizer


def ratio_of_groups(optimizer, model):
    found = cs.preconditioner(optimizer, model)
    return float(found["0.bias"][0] / found["2.bias"][0])


def test_what_groups_do_not_have_in_common_counts():
    model = network()
    heavy = grouped(optim.SGD, model, {"momentum": 0.9}, {"momentum": 0.5, "dampening": 0.5})
    assert ratio_of_groups(heavy, model) == pytest.approx(10.0)
    model = network()
    decayed = grouped(optim.Adagrad, model, {"lr_decay": 0.5}, {"lr_decay": 0.0})
    entries = cs.preconditioner(decayed, model)["0.bias"]
    (p,) = (p for p in decayed.state if p is model[0].bias)
    expected = 1 / (decayed.state[p]["sum"].sqrt() + 1e-10) / (1 + (STEPS - 1) * 0.5)
    torch.testing.assert_close(entries, expected)


def test_a_schedule_that_has_ended_at_zero_keeps_the_ratio_of_the_groups():
    model = network()
    optimizer = grouped(optim.Adam, model, {"lr": 0.01}, {"lr": 0.001})
    before = cs.preconditioner(optimizer, model)
    for group in optimizer.param_groups:
        group["initial_lr"], group["lr"] = group["lr"], 0.0
    after = cs.preconditioner(optimizer, model)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_groups_that_maximise_and_minimise_are_refused():
    model = network()
    optimizer = grouped(optim.SGD, model, {"maximize": True}, {})
    with pytest.raises(KernelError, match="some groups of the optimiser maximise"):
        cs.preconditioner(optimizer, model)


def test_the_names_of_a_wrapped_model_fit_its_kernel():
    model = network()
    optimizer = optim.Adam(model.parameters())
    train(model, optimizer)
    x = torch.randn(4, 4, dtype=torch.float64)
    wrapped = torch.compile(model, backend="eager")
    entries = cs.preconditioner(optimizer, wrapped)
    expected = cs.entk(model, x, preconditioner=entries).values
    assert torch.equal(cs.entk(wrapped, x, preconditioner=entries).values, expected)


def test_a_parameter_without_a_gradient_does_not_move():
    model = network()
    optimizer = optim.Adam(model.parameters())
    model[0].weight.requires_grad_(False)
    train(model, optimizer)
    found = cs.preconditioner(optimizer, model)
    assert not bool(found["0.weight"].any())
    assert bool(found["0.bias"].all())


def test_a_state_that_is_loaded_gives_the_same_and_compiled_models_have_their_own_names():
    model = network(torch.float32)
    optimizer = optim.AdamW(model.parameters())
    train(model, optimizer)
    other = optim.AdamW(model.parameters())
    other.load_state_dict(optimizer.state_dict())
    expected = cs.preconditioner(optimizer, model)
    found = cs.preconditioner(other, torch.compile(model))
    assert list(found) == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_kernel_says_how_a_small_step_changes_the_outputs():
    """θ − η P ∇L changes the outputs f(x_i) by −η Σ_j K_P(x_i, x_j) ∂L/∂f(x_j), to first order."""
    model = network()
    train(model, optimizer := optim.Adam(model.parameters(), lr=0.01))
    x = torch.randn(5, 4, dtype=torch.float64)
    found, rate = cs.preconditioner(optimizer, model), 1e-6
    kernel = cs.entk(model, x, outputs="full", preconditioner=found).values
    model.zero_grad()
    outputs = model(x)
    outputs.pow(3).sum().backward()
    expected = -rate * torch.einsum("ikjl,jl->ik", kernel, 3 * outputs.detach() ** 2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p -= rate * found[name] * p.grad
        torch.testing.assert_close(model(x) - outputs, expected, rtol=1e-3, atol=1e-9)


class Own(optim.Adam):
    """An optimiser of somebody's own."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: optim.LBFGS(m.parameters()), "LBFGS multiplies gradients by no diagonal"),
        (lambda m: optim.Rprop(m.parameters()), "Rprop multiplies .*; take one of SGD, Adam"),
        (lambda m: Own(m.parameters()), "Own multiplies .* give the entries yourself"),
        (lambda m: optim.Adam(m.parameters()), "Adam has no second moments yet; call"),
        (lambda m: optim.Adagrad(m.parameters()), "Adagrad has no second moments yet; call"),
        (
            lambda _: optim.SGD(network().parameters()),
            r"shape \(5, 4\) that is no parameter of the model; give the model",
        ),
    ],
)
def test_what_has_no_known_diagonal_is_refused(make, message):
    model = network()
    with pytest.raises(KernelError, match=message):
        cs.preconditioner(make(model), model)


@pytest.mark.skipif(not hasattr(optim, "Muon"), reason="an optimiser of newer versions of torch")
def test_muon_is_refused():
    model = nn.Linear(4, 3, bias=False)
    with pytest.raises(KernelError, match="Muon multiplies gradients by no diagonal"):
        cs.preconditioner(optim.Muon(model.parameters()), model)


def test_moments_that_are_no_numbers_are_refused():
    model = network()
    train(model, optimizer := optim.Adam(model.parameters()))
    optimizer.state[model[2].bias]["exp_avg_sq"][1] = torch.nan
    with pytest.raises(KernelError, match=r"second moments of '2.bias' give NaN .*; look at"):
        cs.preconditioner(optimizer, model)
    with pytest.raises(cs.errors.ArgumentError, match="expected optimizer to be a Optimizer"):
        cs.preconditioner(model, model)
