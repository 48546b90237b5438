"""Preconditioned kernels J P Jᵀ against formed Jacobians, the laws of P, and wrong entries of P."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import conescope as cs
import kinds
import reference
from conescope.engine.arguments import convention
from conescope.engine.compute.budget import Cut
from conescope.engine.general import without_rules
from conescope.engine.passes import kernel_of
from conescope.engine.problem import Problem as Prepared
from conescope.engine.problem import prepared
from conescope.engine.tracing.survey import without_positions
from conescope.errors import KernelError, ModelError
from kinds import Right, Row
from problems import PROBLEMS, Problem, problem_named
from reference import assert_exact, assert_matches_jacobians, assert_near, products, total
from untouched import untouched

by_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)


def entries(model: nn.Module) -> dict[str, Tensor]:
    """Entries of P between 1/16 and 16, of every size in every parameter."""
    generator = torch.Generator().manual_seed(7)

    def drawn(p: Tensor) -> Tensor:
        return 16 ** (2 * torch.rand(p.shape, generator=generator, dtype=torch.float64) - 1)

    return {
        name: torch.complex(drawn(p), drawn(p)) if p.is_complex() else drawn(p)
        for name, p in model.named_parameters()
        if p.requires_grad
    }


@cache
def rooted(problem: Problem, n: int = 5, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Formed Jacobians of n samples times the roots of P: name → [n, c, p]."""
    model = problem.build(dtype)
    diagonal = entries(model)
    return {
        name: rows * diagonal[name].flatten().sqrt()
        for name, rows in reference.jacobians(model, problem.samples(n, dtype)).items()
    }


@by_problem
@pytest.mark.parametrize("outputs", ["full", "trace", 0])
def test_agrees_with_formed_jacobians(problem: Problem, outputs):
    model, x, rows = problem.build(), problem.samples(5), rooted(problem)
    options = {"outputs": outputs, "check": False, "preconditioner": entries(model)}
    assert_matches_jacobians(rows, rows, model, x, **options)


@by_problem
def test_agrees_in_single_precision_with_the_self_check(problem: Problem):
    model, x = problem.build(torch.float32), problem.samples(4, torch.float32)
    rows = rooted(problem, 4, torch.float32)
    options = {"outputs": "full", "preconditioner": entries(model)}
    assert_matches_jacobians(rows, rows, model, x, **options)


@by_problem
def test_layers_and_two_sets_agree_with_formed_jacobians(problem: Problem):
    model, x = problem.build(), problem.samples(5)
    left, right = (
        {name: rows[part] for name, rows in rooted(problem).items()}
        for part in (slice(2), slice(2, 5))
    )
    kernel = cs.entk(model, x[:2], x[2:], preconditioner=entries(model), by_layer=True)
    expected: dict[str, Tensor] = {}
    for name, part in products(left, right, "trace").items():
        layer = name.rpartition(".")[0] or name
        expected[layer] = expected.get(layer, torch.zeros_like(part)) + part
    assert set(kernel.by_layer) == set(expected)
    scale = float(kernel.values.abs().max())
    for layer, part in expected.items():
        torch.testing.assert_close(kernel.by_layer[layer], part, rtol=0, atol=1e-10 * scale)


@by_problem
def test_pieces_make_the_same_kernel(monkeypatch, problem: Problem):
    model, x, rows = problem.build(), problem.samples(5), rooted(problem)
    pieces = Cut(2, 3, 2, 50, 0)
    monkeypatch.setattr(Prepared, "pieces", lambda *_: pieces)
    assert_matches_jacobians(rows, rows, model, x, preconditioner=entries(model))


@by_problem
def test_every_plainer_route_gives_the_same_kernel(problem: Problem):
    model, x = problem.build(), problem.samples(5)
    expected = total(products(rooted(problem), rooted(problem), "full"))
    with prepared(model, x, None, None, *convention("full"), entries(model)) as found:
        general = without_rules(found.survey, model, found.parameters, found.pair)
        for survey in (without_positions(found.survey), general):
            values = kernel_of(replace(found, survey=survey), False, "model", 10**9)[""]
            assert_exact(values.view(expected.shape), expected)


RIGHT = [row for row in kinds.SMALL if type(row.outcome) is Right]


@pytest.mark.parametrize("row", RIGHT, ids=str)
def test_agrees_for_models_that_were_once_measured_wrongly(row: Row):
    """Complex parameters among them, whose real and imaginary parts have entries of their own."""
    model, x = row.build(), row.samples()
    diagonal = entries(model)
    real = (torch.view_as_real(e) if e.is_complex() else e for e in diagonal.values())
    found = kinds.gradients(row.build(plain=True), x)  # compiled parts have other names
    rows = {
        name: (gradients.double() * e.flatten().sqrt()).reshape(len(x), -1, e.numel())
        for (name, gradients), e in zip(found.items(), real, strict=True)
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernel = cs.entk(model, x, outputs="full", preconditioner=diagonal)
    assert_exact(kernel.values, total(products(rows, rows, "full")))


# Laws


@by_problem
def test_a_number_for_all_entries_multiplies_the_kernel(problem: Problem):
    model, x = problem.build(), problem.samples()
    diagonal = {name: torch.full_like(p, 0.25) for name, p in model.named_parameters()}
    plain = cs.entk(model, x, outputs="full")
    kernel = cs.entk(model, x, outputs="full", preconditioner=diagonal)
    assert_near(4 * kernel.values, plain.values, 1e-12)
    assert kernel.routes == plain.routes


def test_weights_of_another_unit_have_the_same_kernel():
    """With θ = a φ, entry by entry, ∂f/∂φ is a ∂f/∂θ, so that P / a² for φ gives P's kernel."""
    problem = problem_named("mlp")
    model, x = problem.build(), problem.samples()
    diagonal = entries(model)
    units = {name: 2 * entries_of.sqrt() for name, entries_of in entries(model).items()}

    class InUnits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            parts = {n.replace(".", "_"): p / units[n] for n, p in model.named_parameters()}
            self.parts = nn.ParameterDict(parts)

        def forward(self, x: Tensor) -> Tensor:
            weights = {n: self.parts[n.replace(".", "_")] * units[n] for n in units}
            return torch.func.functional_call(model, weights, (x,))

    scaled = {f"parts.{n.replace('.', '_')}": diagonal[n] / units[n] ** 2 for n in units}
    kernel = cs.entk(InUnits(), x, preconditioner=scaled).values
    assert_near(kernel, cs.entk(model, x, preconditioner=diagonal).values)


def test_parameters_of_zero_entries_are_left_out():
    problem = problem_named("mlp")
    model, x = problem.build(), problem.samples()
    diagonal = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    diagonal["2.weight"] += 1
    expected = cs.entk(model, x, params="2.weight").values
    assert_near(cs.entk(model, x, preconditioner=diagonal).values, expected)
    chosen = {"2.weight": diagonal["2.weight"]}
    assert_near(cs.entk(model, x, preconditioner=chosen, params="2.weight").values, expected)


def test_entries_and_model_stay_as_they_are():
    problem = problem_named("convolution")
    model, x = problem.build(), problem.samples()
    given = entries(model)
    with untouched(model, x):
        cs.entk(model, x, preconditioner=given)
    assert all(torch.equal(given[name], kept) for name, kept in entries(model).items())


def test_plain_and_preconditioned_kernels_of_one_model_take_turns():
    problem = problem_named("tied embedding")
    model, x, rows = problem.build(), problem.samples(5), rooted(problem)
    for _ in range(2):
        reference.assert_matches_reference(model, x)
        assert_matches_jacobians(rows, rows, model, x, preconditioner=entries(model))


def test_a_tied_weight_has_any_of_its_names():
    problem = problem_named("tied embedding")
    model, x = problem.build(), problem.samples(5)
    diagonal = entries(model)
    assert "head.weight" not in diagonal
    diagonal["head.weight"] = diagonal.pop("embedding.weight")
    rows = rooted(problem)
    assert_matches_jacobians(rows, rows, model, x, preconditioner=diagonal)


def test_two_names_of_a_tied_weight_agree():
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    model[1].weight = model[0].weight
    x, one = torch.randn(4, 3, dtype=torch.float64), torch.ones(3, 3)
    both = {"0.weight": one, "1.weight": one.clone()}
    assert torch.equal(cs.entk(model, x, preconditioner=both).values, cs.entk(model, x).values)
    with pytest.raises(KernelError, match="two different entries for one tied weight"):
        cs.entk(model, x, preconditioner={**both, "1.weight": 2 * one})


def test_a_kernel_of_parameters_that_reach_no_output_is_refused():
    model = nn.ModuleList([nn.Linear(3, 2), nn.Linear(3, 2)])
    model.forward = model[0].forward
    p = {name: torch.full_like(v, float(name.startswith("1"))) for name, v in
         model.named_parameters()}  # fmt: skip
    with pytest.raises(
        ModelError, match=r"no output depends on the parameters chosen \(1\.weight, 1\.bias\)"
    ):
        cs.entk(model, torch.randn(4, 3), preconditioner=p)


def test_entries_beyond_single_precision_have_roots_within():
    model, x = nn.Linear(3, 2, bias=False), 1e-22 * torch.randn(4, 3)
    huge = torch.full((2, 3), 1e40, dtype=torch.float64)
    expected = cs.entk(model.double(), x.double()).values * 1e40
    found = cs.entk(model.float(), x, preconditioner={"weight": huge}).values
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0.0)


def test_estimates_have_the_preconditioned_kernel_as_their_mean():
    problem = problem_named("convolution")
    model, x = problem.build(), problem.samples()
    diagonal = entries(model)
    exact = cs.entk(model, x, preconditioner=diagonal).values
    estimate = cs.estimate_entk(model, x, draws=2048, preconditioner=diagonal)
    assert bool(((estimate.values - exact).abs() < 5 * estimate.standard_error).all())


def test_bfloat16_factors_are_near():
    problem = problem_named("convolution")
    model, x = problem.build(torch.float32), problem.samples(dtype=torch.float32)
    diagonal = entries(model)
    exact = cs.entk(model, x, preconditioner=diagonal).values
    rounded = cs.entk(model, x, preconditioner=diagonal, precision="bfloat16").values
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.02


def test_a_plan_says_what_runs():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(300, 4), nn.Tanh(), nn.Linear(4, 3)), torch.randn(8, 300)
    routes = {layer.layer: layer.route for layer in cs.plan(model, x).layers}
    assert routes["0"] == "positions"
    planned = cs.plan(model, x, preconditioner=entries(model))
    assert {layer.layer: layer.route for layer in planned.layers} == {
        "0": "gradients + rows",
        "2": "gradients + rows",
    }


# Entries that are wrong


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"0.weight": None}, "no entries for parameter '0.weight'; give them, or leave it out"),
        ({"nowhere": torch.ones(3)}, "names 'nowhere', which is no parameter of the model; take"),
        ({"0.bias": torch.ones(3)}, r"\['0.bias'\] has the shape \(3,\), but .* has \(8,\); give"),
        ({"0.bias": torch.ones(8) * 1j}, r"shape \(8,\) complex, but the parameter has \(8,\)"),
        ({"0.bias": torch.full((8,), torch.nan)}, r"\['0.bias'\] holds NaN entries; look at"),
        ({"0.bias": torch.full((8,), torch.inf)}, r"\['0.bias'\] holds infinite entries; look at"),
        ({"0.bias": torch.ones(8).to_sparse()}, r"\['0.bias'\] is sparse or on the meta .*; give"),
        ({"0.bias": torch.ones(8, device="meta")}, r"is sparse or on the meta device; give"),
        ({"0.bias": -torch.ones(8)}, r"holds negative entries, down to -1; a kernel needs"),
    ],
)
@pytest.mark.parametrize("call", [cs.entk, cs.estimate_entk, cs.plan])
def test_wrong_entries_are_refused(call, changes, message):
    problem = problem_named("mlp")
    model, x = problem.build(), problem.samples()
    given = {n: e for n, e in {**entries(model), **changes}.items() if e is not None}
    with pytest.raises(KernelError, match=message):
        call(model, x, preconditioner=given)


def test_entries_of_zero_alone_are_refused():
    model = nn.Linear(3, 2)
    zero = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    with pytest.raises(KernelError, match="zero everywhere, and so is the kernel; give entries"):
        cs.entk(model, torch.randn(4, 3), preconditioner=zero)
