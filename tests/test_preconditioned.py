"""Preconditioned kernels J P Jᵀ against formed Jacobians, the laws of P, and wrong entries of P."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import conescope as cs
import reference
from conescope.engine.compute.budget import Cut
from conescope.engine.general import without_rules
from conescope.engine.passes import kernel_of
from conescope.engine.problem import Problem as Prepared
from conescope.engine.problem import convention, prepared
from conescope.engine.tracing.survey import without_positions
from problems import PROBLEMS, Problem
from reference import assert_exact, assert_near, total


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


def rooted(model: nn.Module, x: Tensor, diagonal: dict[str, Tensor]) -> dict[str, Tensor]:
    """Formed Jacobians, [n, c, p] each, times the roots of P."""
    return {
        name: rows * diagonal[name].flatten().sqrt()
        for name, rows in reference.jacobians(model, x).items()
    }


by_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)


@by_problem
@pytest.mark.parametrize("outputs", ["full", "trace", "sum", 0])
def test_agrees_with_formed_jacobians(problem: Problem, outputs):
    model, x = problem.build(), problem.samples()
    diagonal = entries(model)
    rows = rooted(model, x, diagonal)
    kernel = cs.entk(model, x, outputs=outputs, preconditioner=diagonal, check=outputs == "full")
    assert_exact(kernel.values, total(reference.products(rows, rows, outputs)))


@by_problem
def test_layers_and_two_sets_agree_with_formed_jacobians(problem: Problem):
    model, x = problem.build(), problem.samples(5)
    diagonal = entries(model)
    left, right = (rooted(model, part, diagonal) for part in (x[:2], x[2:]))
    options = {"preconditioner": diagonal, "by_layer": True}
    kernel = cs.entk(model, x[:2], x[2:], **options)
    expected: dict[str, Tensor] = {}
    for name, part in reference.products(left, right, "trace").items():
        layer = name.rpartition(".")[0] or name
        expected[layer] = expected.get(layer, torch.zeros_like(part)) + part
    assert set(kernel.by_layer) == set(expected)
    scale = float(kernel.values.abs().max())
    for layer, part in expected.items():
        torch.testing.assert_close(kernel.by_layer[layer], part, rtol=0, atol=1e-10 * scale)


@by_problem
def test_agrees_in_single_precision_with_the_self_check(problem: Problem):
    model, x = problem.build(torch.float32), problem.samples(dtype=torch.float32)
    diagonal = entries(model)
    rows = rooted(model, x, diagonal)
    kernel = cs.entk(model, x, outputs="full", preconditioner=diagonal)
    assert_exact(kernel.values, total(reference.products(rows, rows, "full")))


@by_problem
@pytest.mark.parametrize("cut", [(1, 1, 1), (2, 3, 2)])
def test_pieces_of_any_size_make_the_same_kernel(monkeypatch, problem: Problem, cut):
    model, x = problem.build(), problem.samples(5)
    diagonal = entries(model)
    rows = rooted(model, x, diagonal)
    pieces = Cut(*cut, 50, 0)
    monkeypatch.setattr(Prepared, "pieces", lambda *_: pieces)
    kernel = cs.entk(model, x, preconditioner=diagonal)
    assert_exact(kernel.values, total(reference.products(rows, rows, "trace")))


@by_problem
def test_a_number_for_all_entries_multiplies_the_kernel(problem: Problem):
    model, x = problem.build(), problem.samples()
    diagonal = {name: torch.full_like(p, 0.25) for name, p in model.named_parameters()}
    plain = cs.entk(model, x, outputs="full")
    kernel = cs.entk(model, x, outputs="full", preconditioner=diagonal)
    assert_near(4 * kernel.values, plain.values, 1e-12)
    assert kernel.routes == plain.routes


@by_problem
def test_every_plainer_route_gives_the_same_kernel(problem: Problem):
    model, x = problem.build(), problem.samples()
    diagonal = entries(model)
    expected = total(reference.products(*[rooted(model, x, diagonal)] * 2, "full"))
    with prepared(model, x, None, None, *convention("full"), diagonal) as found:
        general = without_rules(found.survey, model, found.parameters, found.pair)
        for survey in (without_positions(found.survey), general):
            values = kernel_of(replace(found, survey=survey), False, "model", 10**9)[""]
            assert_exact(values.view(expected.shape), expected)
