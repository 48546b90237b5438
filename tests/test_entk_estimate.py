"""Estimates by random cotangents, and plans."""

from __future__ import annotations

import pytest
import torch

from conescope.engine import entk, estimate_distance, estimate_entk, plan, project
from conescope.engine.compute.budget import Cut
from conescope.engine.compute.shape import Shape
from conescope.engine.problem import Problem
from conescope.errors import ArgumentError, KernelError
from conescope.kernel.matrix import Kernel
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


def test_an_estimate_is_a_kernel_with_its_draws():
    model, x = torch.nn.Linear(4, 3), torch.randn(6, 4)
    estimate = estimate_entk(model, x, x[:2], draws=5)
    assert isinstance(estimate, Kernel)
    assert estimate.kernel is estimate
    assert estimate.draws is not None
    assert estimate.draws.shape == (5, 6, 2)
    assert torch.equal(estimate.values, estimate.draws.mean(dim=0))
    assert entk(model, x).draws is None


def test_the_standard_error_is_that_of_a_mean():
    draws = torch.randn(7, 3, 2, dtype=torch.float64)
    deviations = draws - draws.mean(dim=0)
    expected = (deviations.square().sum(dim=0) / 6 / 7).sqrt()
    assert_near(Kernel(draws.mean(dim=0), draws=draws).standard_error, expected)


def test_an_exact_kernel_has_no_error_and_is_no_estimate():
    exact, estimate = Kernel(torch.eye(3)), Kernel(torch.eye(3), draws=torch.eye(3).repeat(4, 1, 1))
    with pytest.raises(KernelError, match="estimated by at least two draws"):
        _ = exact.standard_error
    for pair in ((exact, estimate), (estimate, exact)):
        with pytest.raises(KernelError, match="an exact kernel has no draws"):
            estimate_distance(*pair)


def test_estimates_with_other_random_numbers_are_not_compared():
    problem = problem_named("mlp")
    model, x = problem.build(), problem.samples()
    first, other = (estimate_entk(model, x, draws=8, seed=seed) for seed in (0, 1))
    assert estimate_distance(first, estimate_entk(model, x, draws=8))[0] < 1e-12
    with pytest.raises(KernelError, match=r"random cotangents, seed 0 and .*cotangents, seed 1"):
        estimate_distance(first, other)
    projected = project(model, x, dim=64, draws=8).kernel
    with pytest.raises(KernelError, match=r"a projection by 8 cotangents, seed 0 and random cot"):
        estimate_distance(first, projected)
    with pytest.raises(KernelError, match=r"by 1 cotangent, seed 0 and a projection by 8"):
        estimate_distance(project(model, x, dim=64).kernel, projected)
    unknown = Kernel(other.values, draws=other.draws)
    assert estimate_distance(first, unknown)[0] > 0


@pytest.mark.parametrize(
    ("outputs", "values", "draws"),
    [
        ("trace", (3, 3), (4, 3, 2)),
        ("trace", (3, 3), (3, 3)),
        ("trace", (3, 3), (0, 3, 3)),
        ("sum", (3, 3), (4, 3, 3)),
        ("full", (3, 2, 3, 2), (4, 3, 2, 3, 2)),
    ],
)
def test_draws_that_are_none_of_the_kernel_are_refused(outputs, values, draws):
    with pytest.raises(KernelError, match="are no estimate of a kernel of shape"):
        Kernel(torch.ones(values), outputs, draws=torch.ones(draws))


def test_draws_of_whole_numbers_and_values_that_are_no_tensor_are_refused():
    with pytest.raises(KernelError, match=r"type torch\.int64 are no estimate"):
        Kernel(torch.eye(3), draws=torch.ones(2, 3, 3, dtype=torch.int64))
    for held in (torch.eye(3).numpy(), torch.eye(3).tolist()):
        with pytest.raises(ArgumentError, match="expected values to be a Tensor, got"):
            Kernel(held)


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


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
@pytest.mark.parametrize("cut", [None, (2, 2, 2), (1, 4, 1)])
def test_a_plan_is_what_runs(monkeypatch, problem, cut):
    """Execution asks the shapes for the same products, by the same routes, as the plan does."""
    asked: list[str] = []
    cost = Shape.cost

    def noted(shape: Shape, *sizes):
        found = cost(shape, *sizes)
        if not shape.formed:
            asked.append(f"{shape} {sizes} {found.route}")
        return found

    monkeypatch.setattr(Shape, "cost", noted)
    if cut is not None:
        block, chunk, cotangents = cut
        pieces = Cut(block, chunk, cotangents, 50, 0)
        monkeypatch.setattr(Problem, "pieces", lambda *_: pieces)
    model, x = problem.build(), problem.samples(5)
    for y in (None, problem.samples(3)):
        plan(model, x, y)
        planned = sorted(asked)
        asked.clear()
        entk(model, x, y, check=False)
        assert sorted(asked) == planned
        asked.clear()


def test_plan_counts_a_linear_layer():
    model, x = torch.nn.Sequential(torch.nn.Linear(40, 30)), torch.randn(6, 40)
    (layer,) = plan(model, x, outputs="sum").layers
    assert layer.route == "positions"
    assert layer.flops == 2 * (40 + 1 + 30) * 6 * 6 / 2
    (doubled,) = plan(model, torch.randn(12, 40), outputs="sum").layers
    assert doubled.flops == 4 * layer.flops


def test_plan_counts_the_passes():
    model, x = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 3)), torch.randn(5, 6)
    expected = plan(model, x, outputs="trace")
    forward, backward = 2 * (6 * 8 + 8 * 3), 2 * 3 * 8
    assert expected.pass_flops == 5 * (forward + 3 * backward)
    assert expected.flops == expected.pass_flops + sum(layer.flops for layer in expected.layers)


@pytest.mark.parametrize("options", [{"draws": 2.0}, {"draws": "3"}, {"seed": 0.5}, {"seed": None}])
def test_draws_and_seeds_are_whole_numbers(options):
    problem = problem_named("mlp")
    with pytest.raises(ArgumentError, match=r"expected (draws|seed) to be a whole number, got"):
        estimate_entk(problem.build(), problem.samples(), **options)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_the_first_call_whose_samples_are_weighted_has_the_bits_of_a_later_one(problem):
    model, x = problem.build(torch.float32), problem.samples(4, torch.float32)
    first, later = (estimate_entk(model, x, draws=2) for _ in range(2))
    assert torch.equal(first.values, later.values)
