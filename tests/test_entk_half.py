"""Models in half precision: their own gradients of each sample, multiplied and added up in more."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from conescope.engine import entk, estimate_entk, plan
from conescope.engine.layers.norms import ElementNormCall
from conescope.engine.selfcheck import _BOUNDS
from conescope.errors import KernelError
from problems import PROBLEMS, Apply, Problem
from reference import kernel, total

HALVES = [torch.bfloat16, torch.float16]

# In float16 the reference itself is 1.4 roundings from the kernel in float64, and entk 0.6
ROUNDINGS = {"transformer, sequence first": 2}


def assert_near_reference(
    model: nn.Module, x: Tensor, outputs: str = "trace", roundings: int = 1
) -> None:
    """Fail unless a kernel is that of the model's own gradients, up to roundings of its dtype.

    A batch rounds otherwise than a sample alone, and a rule does not round the gradient itself.
    """
    expected = total(kernel(model, x, None, outputs))
    values = entk(model, x, outputs=outputs).values
    assert values.dtype == torch.float32
    rows = int(values.numel() ** 0.5)
    sizes = expected.reshape(rows, rows).diagonal().clamp_min(0).sqrt()
    error = (values.double() - expected).reshape(rows, rows).abs()
    dtypes = {p.dtype for p in model.parameters()}
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    assert bool((error <= roundings * eps * torch.outer(sizes, sizes)).all())


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_the_table_in_half_precision(problem: Problem, dtype: torch.dtype):
    model, x = problem.build(dtype), problem.samples(4, dtype)
    assert_near_reference(model, x, roundings=ROUNDINGS.get(problem.name, 1))
    if problem.ruled and problem.name != "products of matrices":  # whose tanh is 1 in bfloat16
        assert set(entk(model, x).routes.values()) <= {"rule", "unused"}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("outputs", ["full", "sum", 1])
def test_every_convention_in_half_precision(outputs, dtype: torch.dtype):
    for name in ("mlp", "batch norm", "transformer layer", "tied embedding"):
        problem = next(p for p in PROBLEMS if p.name == name)
        assert_near_reference(problem.build(dtype), problem.samples(4, dtype), outputs)


@pytest.mark.parametrize("dtype", HALVES)
def test_estimates_and_plans_in_half_precision(dtype: torch.dtype):
    problem = next(p for p in PROBLEMS if p.name == "transformer layer")
    model, x = problem.build(dtype), problem.samples(4, dtype)
    estimate = estimate_entk(model, x, draws=2)
    assert estimate.values.dtype == torch.float32
    assert {layer.layer for layer in plan(model, x).layers}


def weighted(m: nn.Module, x: Tensor) -> Tensor:
    return (m.norm(x) * m.weights).sum(1)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_products_that_overflow_float16_and_cancel(one_thread):
    """With several threads torch itself adds such products in float16, and gives NaN."""
    model = Apply(
        weighted, norm=nn.LayerNorm(4), weights=torch.tensor([[5e4], [-5e4]]).half()
    ).half()
    model.norm.weight.data.fill_(0.5)
    x = torch.tensor([[[1.0, 0, 0, 0], [0.9, 0, 0.1, 0]], [[0, 1.0, 0, 0], [0, 0.9, 0, 0.1]]])
    assert float((5e4 * nn.functional.layer_norm(x, (4,))).max()) > torch.finfo(torch.float16).max
    assert_near_reference(model.eval(), x.half())


def test_a_kernel_above_the_largest_number_of_float16():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 3)).half().eval()
    x = 100 * torch.rand(4, 50).half()
    assert float(entk(model, x).values.max()) > torch.finfo(torch.float16).max
    assert_near_reference(model, x)


class UnderAutocast(nn.Module):
    """A network whose operations run in bfloat16, with parameters and outputs in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(30, 40), nn.LayerNorm(40), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.b(torch.relu(self.norm(self.a(x)))).float()


def test_rules_serve_a_network_under_autocast():
    torch.manual_seed(0)
    model, x = UnderAutocast().eval(), torch.randn(6, 7, 30)
    found = entk(model, x)
    assert set(found.routes.values()) == {"rule"}
    expected = total(kernel(model, x, None, "trace"))
    error = (found.values.double() - expected).abs().max() / expected.diagonal().max()
    assert float(error) <= torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("dtype", HALVES)
def test_a_wrong_rule_of_a_small_layer_is_found(monkeypatch, dtype: torch.dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 60), nn.LayerNorm(60), nn.Linear(60, 3))
    model[2].weight.data *= 0.3
    model, x = model.to(dtype).eval(), 3 * torch.randn(4, 60).to(dtype)
    parts = kernel(model, x, None, "trace")
    share = sum(parts[f"1.{kind}"].diagonal().max() for kind in ("weight", "bias"))
    assert float(share / total(parts).diagonal().max()) < _BOUNDS[dtype].total
    right = ElementNormCall.bias_rows
    monkeypatch.setattr(ElementNormCall, "bias_rows", lambda call, g: 1.2 * right(call, g))
    assert entk(model, x).routes["1.bias"] == "general"
    assert_near_reference(model, x)


@pytest.mark.parametrize("dtype", HALVES)
def test_the_memory_is_that_of_sums_in_single_precision(dtype: torch.dtype):
    torch.manual_seed(0)
    model, x = nn.Linear(3000, 1000), torch.randn(4, 3000)
    least = []
    for kind in (torch.float32, dtype):
        with pytest.raises(KernelError) as refusal:
            entk(model.to(kind), x.to(kind), outputs="sum", memory="1MB")
        least.append(str(refusal.value).partition("allow at least")[2])
    assert least[0] == least[1]
