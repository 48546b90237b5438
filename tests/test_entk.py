"""The engine against nested loops of plain autograd, closed forms, and the laws of a kernel."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reference
from conescope.engine import entk
from problems import PROBLEMS, Problem, problem_named
from reference import assert_matches_reference, assert_near

by_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)


@by_problem
@pytest.mark.parametrize("outputs", ["full", "trace", "sum", 0])
def test_agrees_with_the_nested_loops(problem: Problem, outputs):
    assert_matches_reference(problem.build(), problem.samples(), outputs=outputs, check=False)


@by_problem
def test_agrees_with_the_nested_loops_in_single_precision(problem: Problem):
    model, x = problem.build(torch.float32), problem.samples(dtype=torch.float32)
    assert_matches_reference(model, x, outputs="full")


@by_problem
def test_between_two_sets(problem: Problem):
    model, x = problem.build(), problem.samples(5)
    for outputs in ("full", "trace"):
        assert_matches_reference(model, x[:3], x[3:], outputs=outputs)


@by_problem
def test_layers_are_right_and_add_up(problem: Problem):
    model, x = problem.build(), problem.samples(3)
    kernel = entk(model, x, outputs="full", by_layer=True)
    expected: dict[str, Tensor] = {}
    for name, part in reference.kernel(model, x).items():
        layer = name.rpartition(".")[0] or name
        expected[layer] = expected.get(layer, torch.zeros_like(part)) + part
    assert set(kernel.by_layer) == set(expected)
    scale = float(kernel.values.abs().max())
    for layer, part in expected.items():
        torch.testing.assert_close(kernel.by_layer[layer], part, rtol=0, atol=1e-10 * scale)
    assert_near(torch.stack(list(kernel.by_layer.values())).sum(0), kernel.values)


@by_problem
def test_routes_are_told(problem: Problem):
    model = problem.build()
    kernel = entk(model, problem.samples())
    routes = set(kernel.routes.values()) - {"unused"}
    assert list(kernel.routes) == [n for n, p in model.named_parameters() if p.requires_grad]
    if problem.ruled is not None:
        assert routes == {"rule" if problem.ruled else "general"}
    else:
        assert "general" in routes


@by_problem
def test_nothing_of_the_model_changes(problem: Problem):
    model, x = problem.build(), problem.samples()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [p.requires_grad for p in model.parameters()]
    given = x.clone()
    entk(model, x, outputs="sum")
    assert torch.equal(x, given)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@by_problem
def test_float32_is_near_float64(problem: Problem):
    expected = entk(problem.build(), problem.samples()).values
    model, x = problem.build(torch.float32), problem.samples(dtype=torch.float32)
    assert_near(entk(model, x).values.double(), expected, 1e-4)


@pytest.mark.parametrize(
    "name", ["mlp", "convolution", "grouped", "embedding", "attention", "batch norm", "lstm"]
)
@pytest.mark.parametrize("outputs", ["full", "trace", "sum"])
def test_same_bits_each_time_and_symmetric(name: str, outputs):
    problem = problem_named(name)
    model, x = problem.build(torch.float32), problem.samples(9, torch.float32)
    first = entk(model, x, outputs=outputs)
    again = entk(model, x, outputs=outputs)
    assert torch.equal(first.values, again.values)
    assert torch.equal(first.matrix, first.matrix.T)
    smallest = float(torch.linalg.eigvalsh(first.matrix.double())[0])
    assert smallest >= -1e-6 * float(first.matrix.trace()) / len(x)


def test_kernel_of_a_linear_layer_is_its_inputs_gram_plus_one():
    x = torch.randn(6, 4, dtype=torch.float64)
    model = nn.Linear(4, 3).double()
    gram = x @ x.T + 1
    assert_near(entk(model, x, outputs="trace").values, 3 * gram)
    assert_near(entk(model, x, outputs="sum").values, 3 * gram)
    assert_near(entk(model, x, outputs=1).values, gram)
    full = entk(model, x, outputs="full").values
    assert_near(full, torch.einsum("ij,kl->ikjl", gram, torch.eye(3, dtype=torch.float64)))


def test_kernel_of_a_bias_is_the_number_of_outputs():
    model = nn.Linear(4, 3)
    assert torch.equal(entk(model, torch.randn(2, 4), params=["bias"]).values, 3 * torch.ones(2, 2))


def test_parts_by_name():
    problem = problem_named("mlp")
    model, x = problem.build(), problem.samples()
    parts = reference.kernel(model, x, outputs="trace")
    assert_near(entk(model, x, params=["2.bias"]).values, parts["2.bias"])
    assert_near(entk(model, x, params="0").values, parts["0.weight"] + parts["0.bias"])


def test_a_frozen_parameter_enters_when_named():
    problem = problem_named("frozen parameter")
    model, x = problem.build(), problem.samples()
    named = entk(model, x, params=["0.weight"]).values
    model[0].weight.requires_grad_(True)
    assert_near(named, reference.kernel(model, x, outputs="trace")["0.weight"])


def test_one_sample():
    problem = problem_named("batch norm")
    assert_matches_reference(problem.build(), problem.samples(1))


def test_gradients_of_the_caller_are_kept():
    problem = problem_named("re-entrant checkpoint")
    model, x = problem.build(), problem.samples()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    entk(model, x)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())


def test_a_changed_model_is_looked_at_again():
    model = problem_named("weight read elsewhere").build()
    x = problem_named("weight read elsewhere").samples()
    plain, reading = (lambda m, x: m.b(torch.tanh(m.a(x)))), model.function
    for function in (plain, reading, plain):
        model.function = function
        assert_matches_reference(model, x)
        assert entk(model, x).routes["b.weight"] == "rule"


def test_images_may_have_their_channels_innermost():
    problem = problem_named("convolution")
    model, x = problem.build(), problem.samples()
    expected = entk(model, x, outputs="full").values
    model.to(memory_format=torch.channels_last)
    assert_near(
        entk(model, x.to(memory_format=torch.channels_last), outputs="full").values, expected
    )


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_a_batch_norm_after_uneven_padding():
    model = nn.Sequential(nn.Conv2d(2, 3, 2, padding="same"), nn.BatchNorm2d(3), nn.Flatten())
    x = torch.randn(2, 2, 3, 3, dtype=torch.float64)
    assert_matches_reference(model.double().eval(), x, outputs="full")


def test_bfloat16_products_are_close():
    problem = problem_named("convolution")
    model, x = problem.build(torch.float32), problem.samples(8, torch.float32)
    exact = entk(model, x, outputs="full").values
    rough = entk(model, x, outputs="full", precision="bfloat16").values
    assert rough.dtype == torch.float32
    error = float((rough - exact).norm() / exact.norm())
    assert 0 < error < 1e-2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
@by_problem
def test_cuda_agrees_with_the_nested_loops(problem: Problem):
    model, x = problem.build(), problem.samples()
    expected = reference.total(reference.kernel(model, x, outputs="full"))
    model = model.cuda()
    assert_near(entk(model, x.cuda(), outputs="full").values.cpu(), expected, 1e-8)
