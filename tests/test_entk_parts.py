"""Parts of networks as people write them from scratch: rules take them, and spoil nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

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


def attend(query: Tensor, h: Tensor) -> Tensor:
    return (query @ h.mT).softmax(-1) @ h


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
    "expanded as data": (
        after(lambda m, ids, h: torch.cat([m.w.expand_as(h[:, :2]), h], 1)), (1, 1, D), set()
    ),
    "prompt behind a layer": (
        after(lambda m, ids, h: torch.cat([m.body(m.w.expand(len(h), -1, -1)), h], 1)),
        (2, D),
        set(),
    ),
    "queries that are normalised": (
        after(lambda m, ids, h: attend(F.layer_norm(m.w.repeat(len(h), 1, 1), (D,)), h)),
        (3, D),
        set(),
    ),
    "queries as in a decoder": (
        after(lambda m, ids, h: attend(m.body(m.w[None].repeat(len(h), 1, 1)), m.body(h))),
        (3, D),
        set(),
    ),
    "a state before the first": (
        after(lambda m, ids, h: (m.body(m.w.expand(len(h), D)) + m.body(h[:, 0]))[:, None]),
        (1, D),
        set(),
    ),
    "expanded over two heads": (
        after(lambda m, ids, h: (h.unflatten(2, (2, -1)) * m.w.expand(2, D // 2)).flatten(2)),
        (D // 2,),
        set(),
    ),
    "windows that take turns": (
        after(lambda m, ids, h: (h.view(-1, 3, D) + m.w.repeat(len(h), 1, 1)).view_as(h)),
        (2, 3, D),
        {"w"},
    ),
    "rows that are equal": (
        after(lambda m, ids, h: F.linear(h, m.w.expand(D, D))), (1, D), set()
    ),
    "bilinear": (after(lambda m, ids, h: F.bilinear(h, h[..., :3], m.w)), (D, D, 3), set()),
    "bilinear scores": (
        after(lambda m, ids, h: torch.einsum("bqd,de,bke->bqk", h, m.w, h) @ h), (D, D), set()
    ),
    "einsum without an output": (
        after(lambda m, ids, h: torch.einsum("bti,ij", h, m.w).movedim(1, 2)), (D, D), set()
    ),
    "tensordot": (after(lambda m, ids, h: torch.tensordot(h, m.w, dims=1)), (D, D), set()),
    "tensordot of two axes": (
        after(
            lambda m, ids, h: torch.tensordot(h.unflatten(2, (2, -1)), m.w, dims=([-1, 2], [0, 1]))
        ),
        (D // 2, 2, D),
        set(),
    ),
    "inner": (after(lambda m, ids, h: torch.inner(h, m.w)), (D, D), set()),
    "mv": (
        after(lambda m, ids, h: torch.mv(h.flatten(0, 1), m.w).view(-1, T, 1) * h), (D,), set()
    ),
    "scaled addmm": (
        after(
            lambda m, ids, h: torch.addmm(
                m.w[0], h.flatten(0, 1), m.w, beta=0.5, alpha=2
            ).view_as(h)
        ),
        (D, D),
        set(),
    ),
    "added to a batch": (
        after(lambda m, ids, h: torch.baddbmm(m.w, h, h.mT @ h / 9)), (T, D), set()
    ),
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


class Scan(nn.Module):
    """A selective state space, step by step, of which the last output is used."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.read = nn.Embedding(V, D), nn.Linear(D, 3)
        self.decay, self.skip = weight(D), weight(D)

    def forward(self, ids: Tensor) -> Tensor:
        steps, state = self.tokens(ids), torch.zeros(len(ids), D)
        found = []
        for t in range(T):
            state = state * torch.exp(-steps[:, t] * self.decay) + steps[:, t]
            found.append(state + self.skip * steps[:, t])
        return self.read(torch.stack(found, 1)[:, -1])


@pytest.mark.usefixtures("in_double")
def test_steps_that_no_gradient_reaches_cost_no_rule():
    torch.manual_seed(0)
    model, ids = Scan(), torch.randint(V, (5, T))
    assert set(entk(model, ids).routes.values()) == {"rule"}
    assert_matches_reference(model, ids, outputs="full")


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("zero", ["read.weight", "gate", "body.weight"])
def test_a_part_that_starts_at_zero_costs_no_rule_before_nor_after(zero: str):
    torch.manual_seed(0)
    model = Apply(
        lambda m, ids: m.read(m.tokens(ids) + m.gate * m.body(torch.tanh(m.first(m.tokens(ids))))),
        first=nn.Linear(D, D),
        gate=weight(),
        **rest(),
    )
    ids = torch.randint(V, (5, T))
    nn.init.zeros_(model.get_parameter(zero))
    for _ in range(2):
        kernel = entk(model, ids, by_layer=True)
        assert set(kernel.routes.values()) == {"rule"}
        assert kernel.by_layer.keys() == {"tokens", "first", "body", "read", "gate"}
        assert_matches_reference(model, ids)
        nn.init.normal_(model.get_parameter(zero))


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("outputs", ["trace", "full"])
def test_a_branch_that_the_first_samples_do_not_take(outputs):
    torch.manual_seed(0)
    model = Apply(
        after(lambda m, ids, h: h + (ids[:, :1, None] == 3) * m.branch(h)),
        branch=nn.Linear(D, D),
        **rest(),
    )
    ids = torch.tensor([[1] * T, [2] * T, [3] * T, [3, 1, 2, 3, 4, 5], [0] * T])
    for order in (ids, ids.flip(0), ids):
        assert_matches_reference(model, order, outputs=outputs)
        assert_matches_reference(model, order, outputs=outputs, memory="60MB")
    routes = entk(model, ids).routes
    assert routes["tokens.weight"] == routes["read.weight"] == "rule"


def sort_tokens(m: nn.Module, ids: Tensor) -> Tensor:
    """Send every token to one expert; an expert takes its tokens of all samples at once."""
    h = m.tokens(ids).flatten(0, 1)
    weights, chosen = m.router(h).softmax(-1).topk(2, -1)
    out = torch.zeros_like(h)
    for number, expert in enumerate(m.experts):
        token, rank = torch.where(chosen == number)
        out = out.index_add(0, token, expert(h[token]) * weights[token, rank, None])
    return m.read(out.view(*ids.shape, D))[:, -1]


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("seed", range(6))
def test_experts_whose_tokens_fit_two_samples_by_chance_cost_no_other_its_rule(seed: int):
    torch.manual_seed(seed)
    experts = nn.ModuleList(nn.Linear(D, D) for _ in range(3))
    model = Apply(sort_tokens, router=nn.Linear(D, 3), experts=experts, **rest())
    ids = torch.randint(V, (5, T))
    for samples in (ids, ids[1:3], ids[:1]):
        assert_matches_reference(model, samples, outputs="full")
    routes = entk(model, ids).routes
    assert {routes[f"{name}.weight"] for name in ("tokens", "router", "read")} == {"rule"}


@pytest.mark.usefixtures("in_double")
def test_layers_behind_a_checkpoint_have_rules_and_training_keeps_the_checkpoint():
    torch.manual_seed(0)
    calls: list[int] = []

    def block(m: nn.Module, h: Tensor) -> Tensor:
        calls.append(len(h))
        return m.body(torch.tanh(h))

    model = Apply(
        after(lambda m, ids, h: checkpoint(block, m, h, use_reentrant=False)),
        **rest(),
    )
    ids = torch.randint(V, (5, T))
    assert set(entk(model, ids).routes.values()) == {"rule"}
    assert_matches_reference(model, ids, outputs="full")
    calls.clear()
    model(ids).sum().backward()
    assert calls == [5, 5]


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("norm", [parametrizations.spectral_norm, nn.utils.spectral_norm])
@pytest.mark.parametrize("width", [D, D - 1])
def test_the_vectors_of_a_spectral_norm_are_constants(norm: Callable, width: int):
    torch.manual_seed(0)
    body, read = norm(nn.Linear(D, width)), norm(nn.Linear(width, 3))
    model = nn.Sequential(nn.Embedding(V, D), body, nn.Tanh(), read, nn.Flatten())
    ids = torch.randint(V, (5, T))
    with torch.no_grad():
        model(ids)
    model.eval()
    assert set(entk(model, ids).routes.values()) == {"rule"}
    assert_matches_reference(model, ids)
