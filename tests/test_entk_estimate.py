"""Estimates by random cotangents, and plans."""

from __future__ import annotations

import pytest
import torch

from conescope.engine import entk, estimate_distance, estimate_entk, plan
from conescope.errors import KernelError
from problems import PROBLEMS, problem_named
from reference import assert_near


def test_one_output_needs_no_luck():
    problem = problem_named("one output")
    model, x = problem.build(), problem.samples()
    estimate = estimate_entk(model, x, draws=2)
    assert_near(estimate.kernel.values, entk(model, x).values)
    assert float(estimate.standard_error.max()) < 1e-12


def test_all_signs_average_to_the_class_trace():
    problem = problem_named("mlp")
    model, x = problem.build(), problem.samples()
    exact = entk(model, x).values
    estimate = estimate_entk(model, x, draws=400)
    error = (estimate.kernel.values - exact).abs()
    assert bool((error <= 5 * estimate.standard_error + 1e-12).all())


def test_distance_is_near_with_its_error():
    problem = problem_named("mlp")
    model, x = problem.build(), problem.samples()
    first = estimate_entk(model, x, draws=8)
    same, error = estimate_distance(first, first)
    assert same == error == 0.0
    with torch.no_grad():
        model[0].weight += 0.1
    moved, error = estimate_distance(first, estimate_entk(model, x, draws=8))
    assert 0 < moved < 1
    assert error > 0
    with pytest.raises(KernelError, match="cannot be compared"):
        estimate_distance(first, estimate_entk(model, x, draws=4))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
@pytest.mark.parametrize("outputs", ["full", "trace"])
def test_plan_covers_every_layer(problem, outputs):
    model, x = problem.build(), problem.samples()
    expected = plan(model, x, outputs=outputs)
    kernel = entk(model, x, outputs=outputs, by_layer=True)
    assert {layer.layer for layer in expected.layers} == set(kernel.by_layer)
    assert all(p.seconds > 0 < p.flops for p in expected.layers if p.route != "unused")
    assert expected.seconds > expected.passes
    assert all(layer.layer in str(expected) for layer in expected.layers)


def test_plan_counts_a_linear_layer():
    model, x = torch.nn.Sequential(torch.nn.Linear(4, 3)), torch.randn(6, 4)
    (layer,) = plan(model, x, outputs="sum").layers
    assert layer.route == "positions"
    assert layer.flops == 2 * (4 + 1 + 3) * 6 * 6 / 2
    (doubled,) = plan(model, torch.randn(12, 4), outputs="sum").layers
    assert doubled.flops == 4 * layer.flops


def test_plan_counts_the_passes():
    model, x = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)), torch.randn(5, 6)
    expected = plan(model, x, outputs="trace")
    forward, backward = 2 * (6 * 8 + 8 * 3), 2 * 3 * 8
    assert expected.pass_flops == 5 * (forward + 3 * backward)
    assert expected.flops == expected.pass_flops + sum(layer.flops for layer in expected.layers)
