"""What rules put in the place of an operation is the same function, wherever it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from conescope.engine import entk
from problems import Apply
from reference import assert_matches_reference, assert_near, kernel, total

V, T, D = 7, 6, 8


def network(first: Callable[..., Tensor], *shape: int, dtype: torch.dtype) -> nn.Module:
    """Return a model of tokens with a part `first`, which has a parameter `w` of this shape."""

    def run(m: Any, ids: Tensor) -> Tensor:
        return m.read(torch.tanh(m.body(first(m, m.tokens(ids))))).mean(1)

    torch.manual_seed(0)
    return Apply(
        run,
        w=nn.Parameter(torch.randn(shape)),
        tokens=nn.Embedding(V, D),
        body=nn.Linear(D, D),
        read=nn.Linear(D, 3),
    ).to(dtype)


def tokens() -> Tensor:
    return torch.randint(V, (5, T), generator=torch.Generator().manual_seed(1))


def without_rule(model: nn.Module) -> set[str]:
    return {name for name, route in entk(model, tokens()).routes.items() if route == "general"}


def written(m: Any, h: Tensor) -> Tensor:
    repeated = m.w.repeat(len(h), 1, 1)
    repeated[:, 0] = h[:, 0]
    return repeated.mul_(2) + h


@pytest.mark.parametrize(
    "part", [lambda m, h: m.w.repeat(len(h), 1, 1).view(-1, D).view(h.shape) * h, written]
)
@pytest.mark.parametrize("samples", [1, 5])
def test_a_repeated_parameter_can_be_viewed_and_written_to(part, samples: int):
    model = network(part, T, D, dtype=torch.float64)
    assert without_rule(model) == set()
    assert_matches_reference(model, tokens()[:samples], outputs="full")


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        (lambda m, h: torch.inner(h, m.w), ()),
        (lambda m, h: torch.mv(input=h.flatten(0, 1), vec=m.w).view(-1, T, 1) * h, (D,)),
        (lambda m, h: torch.mm(h.flatten(0, 1), mat2=m.w).view_as(h), (D, D)),
    ],
)
def test_products_of_numbers_and_by_keyword_have_rules(part, shape):
    model = network(part, *shape, dtype=torch.float64)
    assert without_rule(model) == set()
    assert_matches_reference(model, tokens(), outputs="full")


def test_what_is_added_zero_times_may_be_no_number():
    def part(m: Any, h: Tensor) -> Tensor:
        nothing = torch.full((D,), torch.nan, dtype=h.dtype)
        return torch.addmm(nothing, h.flatten(0, 1), m.w, beta=0, alpha=2).view_as(h)

    model = network(part, D, D, dtype=torch.float64)
    assert without_rule(model) == set()
    assert_matches_reference(model, tokens(), outputs="full")


@pytest.mark.parametrize(
    ("part", "shape"),
    [
        (lambda m, h: torch.addmm(m.w[0], h.flatten(0, 1), m.w, beta=0.5).view_as(h), (D, D)),
        (lambda m, h: torch.baddbmm(m.w, h, h.mT @ h), (1, T, D)),
        (lambda m, h: F.bilinear(h, h, m.w), (D, D, D)),
    ],
)
def test_sums_of_products_under_autocast_are_rounded_as_the_model_rounds_them(part, shape):
    def rounded(m: Any, h: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return part(m, h).to(h)

    model = network(rounded, *shape, dtype=torch.float32)
    assert without_rule(model) == {"w"}
    expected = total(kernel(model, tokens()))
    assert_near(entk(model, tokens(), outputs="full").values, expected, 2e-4)


def test_a_checkpoint_without_gradients_has_no_context_of_its_own():
    def part(m: Any, h: Tensor) -> Tensor:
        with torch.no_grad():
            data = checkpoint(
                lambda h: h @ h.mT @ h / 9, h, use_reentrant=False, context_fn=autocast
            )
        return m.body(h) * m.w + data

    def autocast() -> tuple[torch.autocast, torch.autocast]:
        return torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", torch.bfloat16)

    model = network(part, D, dtype=torch.float32)
    assert without_rule(model) == set()
    assert_matches_reference(model, tokens(), outputs="full")
