"""Random networks of the supported layers, in float64, against the nested loops."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

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
