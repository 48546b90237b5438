"""Parts of networks as people write them from scratch: rules take them, and spoil nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conescope.engine import entk
from problems import Apply
from reference import assert_matches_reference

V, T, D = 7, 6, 8


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def rest() -> dict[str, nn.Module]:
    return {"tokens": nn.Embedding(V, D), "body": nn.Linear(D, D), "read": nn.Linear(D, 3)}


def after(first: Callable[..., Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    """What follows a part: two layers, and a mean over the tokens."""
    return lambda m, ids: m.read(torch.tanh(m.body(first(m, ids, m.tokens(ids))))).mean(1)


PARTS: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], tuple[int, ...], set[str]]] = {
    "table by tokens": (after(lambda m, ids, h: m.w[ids]), (V, D), set()),
    "table by tokens in a tuple": (after(lambda m, ids, h: m.w[ids,]), (V, D), set()),
    "table from its end": (after(lambda m, ids, h: m.w[-1 - ids]), (V, D), set()),
    "table of matrices": (after(lambda m, ids, h: m.w[ids].flatten(2)), (V, 2, D // 2), set()),
    "table of numbers": (after(lambda m, ids, h: m.w[ids][..., None] * torch.ones(D)), (V,), set()),
    "table of unit vectors": (after(lambda m, ids, h: F.normalize(m.w)[ids]), (V, D), set()),
    "table and positions": (after(lambda m, ids, h: m.w[ids] + m.w[:T]), (V, D), set()),
    "index_select": (
        after(lambda m, ids, h: m.w.index_select(0, ids.flatten()).view(-1, T, D)), (V, D), set()
    ),
    "index_select of columns": (
        after(lambda m, ids, h: m.w.index_select(1, ids.flatten()).T.reshape(-1, T, D)),
        (D, V),
        {"w"},
    ),
    "take_along_dim": (
        after(lambda m, ids, h: m.w[None].take_along_dim(ids[..., None], 1)), (V, D), {"w"}
    ),
    "chosen by a mask": (
        after(lambda m, ids, h: m.w[ids.new_tensor([1, 0, 1, 1]).bool()].sum(0) * h),
        (4, D),
        set(),
    ),
    "filled with a number": (
        after(lambda m, ids, h: h.masked_fill(ids[..., None] > 3, m.w)), (), set()
    ),
    "filled in place": (
        after(lambda m, ids, h: h.clone().masked_fill_(ids[..., None] > 3, m.w)), (), {"w"}
    ),
    "learned bounds": (after(lambda m, ids, h: h.clamp(-m.w.abs(), m.w.abs())), (D,), set()),
    "sum of exponentials": (after(lambda m, ids, h: torch.logaddexp(h, m.w)), (D,), set()),
    "broadcast with data": (
        after(lambda m, ids, h: torch.broadcast_tensors(h, m.w)[1] * h), (D,), set()
    ),
}  # fmt: skip


@pytest.fixture
def in_double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("name", PARTS)
def test_a_part_that_people_write_themselves(name: str):
    torch.manual_seed(0)
    function, shape, general = PARTS[name]
    model, ids = Apply(function, w=weight(*shape), **rest()), torch.randint(V, (5, T))
    routes = entk(model, ids).routes
    assert {parameter for parameter, route in routes.items() if route == "general"} == general
    assert_matches_reference(model, ids, outputs="full")
    assert_matches_reference(model, ids[:2], ids[2:])


@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", ["product", "choice"])
def test_a_number_of_a_wider_type_widens_nothing(wide: torch.dtype, way: str):
    torch.manual_seed(0)
    scaled = {
        "product": lambda m, x: m.b(m.a(x).tanh() * m.s),
        "choice": lambda m, x: m.b(torch.where(m.a(x) > 0, m.a(x), m.s)),
    }[way]
    narrow = torch.bfloat16 if wide == torch.float32 else torch.float32
    members = {"a": nn.Linear(4, 5), "b": nn.Linear(5, 3)}
    model = Apply(scaled, **members).to(narrow)
    model.s = nn.Parameter(torch.tensor(1.3, dtype=wide))
    kernel = entk(model, torch.randn(5, 4).to(narrow))
    assert set(kernel.routes.values()) == {"rule"}
