"""Random networks of the supported layers, in float64, against the nested loops.

Networks of modules, and sequences of operations on raw parameters, as language models have them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from conescope.engine import entk
from reference import assert_matches_reference


class Residual(nn.Module):
    """x ↦ x + body(x), the body twice: a skip connection and tied weights."""

    def __init__(self, body: nn.Module, times: int):
        super().__init__()
        self.body, self.times = body, times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = x + self.body(x)
        return x


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A network of one to four layers in one to three dimensions, and a sample's shape."""
    dimensions = draw(st.integers(0, 3))
    channels = draw(st.sampled_from([2, 4]))
    shape = (channels, *draw(st.tuples(*[st.integers(3, 4)] * dimensions)))
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 3))):
        layers += [draw(maps(dimensions, channels)), draw(norms(dimensions, channels)), nn.Tanh()]
    return nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(draw(st.integers(1, 3)))), shape


@st.composite
def maps(draw: st.DrawFn, dimensions: int, channels: int) -> nn.Module:
    bias = draw(st.booleans())
    if dimensions == 0:
        layer: nn.Module = nn.Linear(channels, channels, bias=bias)
    else:
        kind = draw(st.sampled_from(["conv", "transposed"]))
        kernel = draw(st.sampled_from([1, 3]))
        dilation = draw(st.integers(1, 2))
        groups = draw(st.sampled_from([1, 2, channels]))
        padding = dilation * (kernel - 1) // 2
        family = {
            "conv": (nn.Conv1d, nn.Conv2d, nn.Conv3d),
            "transposed": (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        }[kind][dimensions - 1]
        layer = family(
            channels, channels, kernel, padding=padding, dilation=dilation, groups=groups, bias=bias
        )
    times = draw(st.integers(0, 2))
    return Residual(layer, times) if times else layer


@st.composite
def norms(draw: st.DrawFn, dimensions: int, channels: int) -> nn.Module:
    batch = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions]
    affine = draw(st.booleans())
    return draw(
        st.sampled_from(
            [
                nn.Identity(),
                batch(channels, affine=affine),
                nn.GroupNorm(2 if dimensions else 1, channels, affine=affine),
            ]
        )
    )


@settings(max_examples=150, deadline=None)
@given(
    networks(),
    st.integers(1, 4),
    st.sampled_from(["full", "trace", "sum", 0]),
    st.integers(0, 2**16),
    st.booleans(),
)
def test_random_networks_agree_with_the_nested_loops(network, n, outputs, seed, two_sets):
    model, shape = network
    torch.manual_seed(seed)
    model = model.double().eval()
    model(torch.zeros(1, *shape, dtype=torch.float64))
    for p in model.parameters():
        p.data = 0.5 * torch.randn_like(p)
    x = torch.randn(n, *shape, dtype=torch.float64)
    y = torch.randn(2, *shape, dtype=torch.float64) if two_sets else None
    assert_matches_reference(model, x, y, outputs=outputs)


WIDTH = 4


class Raw(nn.Module):
    """x [n, T, 4] ↦ x + f(x, w), then tanh, with raw parameters w, possibly the same ones twice."""

    def __init__(self, shapes: list[tuple[int, ...]], function: Callable[..., Tensor], times: int):
        super().__init__()
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(shape)) for shape in shapes)
        self.function, self.times = function, times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = torch.tanh(x + self.function(x, *self.weights))
        return x


class SequenceFirst(nn.Module):
    """A module between two exchanges of samples and positions, unrolled into rows or not."""

    def __init__(self, body: nn.Module, unrolled: bool):
        super().__init__()
        self.body, self.unrolled = body, unrolled

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        if not self.unrolled:
            return self.body(x).transpose(0, 1)
        return self.body(x.reshape(-1, WIDTH)).reshape(x.shape).transpose(0, 1)


def _parts(x: Tensor, w: Tensor) -> Tensor:
    first, second = w.chunk(2)
    return F.linear(F.linear(x, first).sin(), second.T)


def _prompt(x: Tensor, w: Tensor, copies: bool) -> Tensor:
    w = 2 * w
    tokens = w.repeat(len(x), 1, 1) if copies else w[None].expand(len(x), -1, -1)
    return torch.cat([tokens, x], dim=1).cumsum(dim=1)[:, len(w) :]


D = WIDTH
OPERATIONS: dict[str, tuple[list[tuple[int, ...]], Callable[..., Tensor]]] = {
    "right": ([(D, D)], lambda x, w: x @ w),
    "left": ([(D, D)], lambda x, w: (w @ x.mT).mT),
    "experts": ([(3, D, D)], lambda x, w: (x[:, None] @ w).sin().sum(1)),
    "batched": ([(3, D, 2), (3, 2, D)],
                lambda x, v, w: (x.reshape(1, -1, D).expand(3, -1, -1).bmm(v).sin() @ w)
                .mean(0).view(x.shape)),
    "heads": ([(D, 2, 3), (2, 3, D)],
              lambda x, v, w: torch.einsum("hkd,nthk->ntd", w,
                                           torch.einsum("ntd,dhk->nthk", x, v))),
    "ellipsis": ([(D, D)], lambda x, w: torch.einsum("...a,oa->...o", x, w)),
    "parts": ([(6, D)], _parts),
    "both": ([(D, D)], lambda x, w: F.linear(x, w).sin() @ w + x @ w.T),
    "gain": ([(D,), (D,)], lambda x, v, w: (1 + v) * x - w),
    "gate": ([()], lambda x, w: x * w.exp()),
    "norm": ([(D, D), (D,)], lambda x, v, g: F.linear(x, v * (g / v.square().sum(0) ** 0.5))),
    "quotient": ([(1, 1, D)], lambda x, w: x / (2 + w.square())),
    "reversed": ([(D,)], lambda x, w: w / (2 + x.square())),
    "in place": ([(D,), (1,)], lambda x, v, w: x.sin().mul_(v).add_(w)),
    "choice": ([(D,)], lambda x, w: torch.where(x > 0, w, x)),
    "larger": ([(5, D)], lambda x, w: (x[..., None, :] * w).sin().sum(-2)),
    "prompt": ([(2, D)], lambda x, w: _prompt(x, w, False)),
    "repeated prompt": ([(1, D)], lambda x, w: _prompt(x, w, True)),
    "table": ([(9, D)], lambda x, w: x + F.embedding(torch.arange(x.shape[1]), w)),
    "slice": ([(1, 9, D)], lambda x, w: x * w[:, 2 : 2 + x.shape[1]]),
    "bias of scores": ([(9, 1)], lambda x, w: F.scaled_dot_product_attention(
        x[:, None], x[:, None], x[:, None],
        w[(torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])).abs()].movedim(2, 0)[None],
    )[:, 0]),
}  # fmt: skip
POSITIONWISE = ["right", "ellipsis", "parts", "both", "gain", "gate", "norm", "quotient",
                "reversed", "in place", "choice"]  # fmt: skip


@st.composite
def sequences(draw: st.DrawFn) -> nn.Module:
    """A network of one to four operations on raw parameters, or of attention."""
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["any", "sequence first", "attention"]))
        if kind == "attention":
            layers.append(
                nn.TransformerEncoderLayer(
                    D, 2, 5, batch_first=True, norm_first=draw(st.booleans())
                )
            )
            continue
        names = POSITIONWISE if kind == "sequence first" else [*OPERATIONS]
        shapes, function = OPERATIONS[draw(st.sampled_from(names))]
        layer: nn.Module = Raw(shapes, function, draw(st.integers(1, 2)))
        if kind == "sequence first":
            layer = SequenceFirst(layer, draw(st.booleans()))
        layers.append(layer)
    return nn.Sequential(*layers, nn.Linear(D, draw(st.integers(1, 2))))


@settings(max_examples=150, deadline=None)
@given(
    sequences(),
    st.integers(1, 5),
    st.integers(1, 5),
    st.sampled_from(["full", "trace", "sum", 0]),
    st.integers(0, 2**16),
)
def test_random_sequences_of_operations_agree_with_the_nested_loops(model, n, t, outputs, seed):
    torch.manual_seed(seed)
    model = model.double().eval()
    for p in model.parameters():
        p.data = 0.5 * torch.randn_like(p)
    x = torch.randn(n, t, WIDTH, dtype=torch.float64)
    assert_matches_reference(model, x, outputs=outputs)


@pytest.mark.parametrize("t", [2, 3, 4])
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_on_a_raw_parameter_has_a_rule(name: str, t: int):
    torch.manual_seed(0)
    shapes, function = OPERATIONS[name]
    model = nn.Sequential(Raw(shapes, function, 1), nn.Linear(WIDTH, 2)).double()
    for p in model.parameters():
        p.data = 0.5 * torch.randn_like(p)
    routes = entk(model, torch.randn(3, t, WIDTH, dtype=torch.float64)).routes
    assert set(routes.values()) == {"rule"}
