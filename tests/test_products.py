"""Products of matrices, in each library that may compute them, against float64."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conescope.engine import entk
from conescope.engine.compute import products
from conescope.engine.layers import convolution

LARGE = (150, 600, 130)
SMALL = (3, 4, 5)


@pytest.fixture(params=[True, False], ids=["on Intel", "elsewhere"])
def processor(request, monkeypatch):
    for module in (products, convolution):
        monkeypatch.setattr(module, "mkl_on_intel", lambda: request.param)
    return request.param


@pytest.mark.parametrize(
    ("capabilities", "intel"),
    [({"cpu_name": "Intel Xeon"}, True), ({"cpu_name": "AMD EPYC"}, False), ({}, False)],
)
def test_intel_is_told_by_its_name(monkeypatch, capabilities, intel):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert products.mkl_on_intel.__wrapped__() == intel


def matrices(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows, inner, columns = shape
    return torch.randn(rows, inner).to(dtype), torch.randn(columns, inner).to(dtype).T


@pytest.mark.parametrize("shape", [LARGE, SMALL])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float64, 1e-15)]
)
@pytest.mark.usefixtures("processor")
def test_product_of_strided_matrices(shape, dtype: torch.dtype, tolerance: float):
    left, right = matrices(shape, dtype)
    wide = torch.zeros(len(left), 2 * left.shape[1], dtype=dtype)
    wide[:, 1::2] = left
    expected = left.double() @ right.double()
    for a in (left, wide[:, 1::2]):
        product = products.multiply(a, right)
        assert product.dtype == dtype
        assert float((product.double() - expected).norm() / expected.norm()) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 33, 260])
@pytest.mark.usefixtures("processor")
def test_gram_fills_the_lower_triangle(rows: int, dtype: torch.dtype):
    factor = torch.randn(rows, 700, dtype=dtype)
    out = torch.ones(rows, rows, dtype=dtype)
    products.add_gram(out, factor, None)
    products.mirror(out)
    expected = factor.double() @ factor.double().T + 1
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-3)
    assert torch.equal(out, out.T)


@given(
    rows=st.integers(1, 12),
    columns=st.integers(1, 3 * products.LONG_SUM),
    seed=st.integers(0, 99),
    exact=st.booleans(),
    other=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_long_inner_products_keep_their_digits(rows, columns, seed, exact, other):
    """They are compared with float64 products of the same numbers, relative to the diagonal."""
    generator = torch.Generator().manual_seed(seed)
    shape = rows, columns
    left = torch.rand(shape, generator=generator) * torch.randn(shape, generator=generator).exp()
    right = left.flip(0).contiguous() if other else None
    out = torch.zeros(rows, rows, dtype=torch.float64 if exact else torch.float32)
    products.add_gram(out, left, right)
    expected = left.double() @ (left if right is None else right).double().T
    error = (out.double() - expected).abs()
    if right is None:
        error = error.tril()
    assert float(error.max()) <= 1e-6 * float(left.double().square().sum(dim=1).max())


def test_products_of_any_length_keep_their_digits():
    left, right = torch.rand(3, 5 * products.LONG_SUM), torch.rand(5 * products.LONG_SUM, 2)
    expected = left.double() @ right.double()
    found = products.multiply_long(left, right)
    assert found.dtype == torch.float64
    assert float(((found - expected) / expected).abs().max()) < 1e-6


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("outputs", ["full", "trace", "sum"])
def test_without_onednn_the_kernel_is_the_same(outputs):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3200, 3)).eval()
    x = torch.randn(80, 16, 12, 12)
    fast = entk(model, x, outputs=outputs).values
    with torch.backends.mkldnn.flags(enabled=False):
        plain = entk(copy.deepcopy(model), x, outputs=outputs).values
    assert not torch.equal(fast, plain)
    assert float((fast - plain).norm() / plain.norm()) < 1e-6


class Twice(nn.Module):
    """One convolution, used twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(16, 32, 3, padding=1, stride=2), (16, 20)),
    "2d, dilated": (lambda: nn.Conv2d(16, 32, 3, padding=2, dilation=2, bias=False), (16, 6, 5)),
    "2d, groups": (lambda: nn.Conv2d(32, 32, (3, 1), groups=2, stride=(2, 1)), (32, 6, 5)),
    "3d": (lambda: nn.Conv3d(16, 16, 2, padding=1), (16, 4, 3, 3)),
    "even, same": (lambda: nn.Conv2d(16, 16, 2, padding="same"), (16, 4, 4)),
    "twice": (lambda: Twice(nn.Conv2d(16, 16, 3, padding=1)), (16, 5, 5)),
    "pieces": (
        lambda: nn.Sequential(nn.Unflatten(1, (-1, 16)), nn.Flatten(0, 1), nn.Conv2d(16, 16, 3),
                              nn.Unflatten(0, (-1, 2))),
        (32, 5, 5),
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.usefixtures("processor")
@pytest.mark.parametrize("outputs", ["sum", "trace", 1])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_formed_by_a_convolution(name: str, outputs):
    torch.manual_seed(1)
    make, shape = CONVOLUTIONS[name]
    model = nn.Sequential(make(), nn.Tanh(), nn.Flatten(), nn.LazyLinear(4)).eval()
    x, y = torch.randn(5, *shape), torch.randn(3, *shape)
    model(x)
    kernels = [entk(model, x, outputs=outputs), entk(model, x, y, outputs=outputs)]
    model.double()
    for kernel, other in zip(kernels, (None, y.double()), strict=True):
        exact = entk(model, x.double(), other, outputs=outputs).values
        assert float((kernel.values - exact).norm() / exact.norm()) < 1e-6
