"""Tensors made of parameters alone: what rules may take, and what is left to the general route."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conescope.engine import entk
from conescope.engine.arguments import convention
from conescope.engine.layers.embedding import EmbeddingCall
from conescope.engine.layers.linear import LinearCall, ProductCall
from conescope.engine.problem import prepared
from conescope.engine.tracing.recorder import record
from conescope.engine.tracing.routes import follow
from problems import Apply, problem_named
from reference import assert_matches_reference


def calls_of(model: nn.Module, x: Tensor) -> list:
    parameters = dict(model.named_parameters())
    return record(model, parameters, x)[1].calls


def test_a_transpose_is_the_weight_itself():
    w = nn.Parameter(torch.randn(3, 4))
    model = Apply(lambda m, x: F.linear(x @ m.w.T, m.w.t()), w=w)
    calls = calls_of(model, torch.randn(2, 4))
    assert [type(call) for call in calls] == [LinearCall, ProductCall]
    assert all(call.outer is call and not call.pulls for call in calls)


def test_a_rearranged_weight_keeps_its_factors_and_a_part_does_not():
    w = nn.Parameter(torch.randn(6, 4))
    model = Apply(lambda m, x: F.linear(x, (1 + m.w).view(4, 6).mT) + F.linear(x, 2 * m.w), w=w)
    whole, scaled = calls_of(model, torch.randn(2, 4))
    assert whole.outer is whole
    assert scaled.outer is None


def test_uses_of_a_weight_in_two_orders_are_not_joined():
    w = nn.Parameter(torch.randn(4, 4))
    model = Apply(
        lambda m, x: F.linear(x, m.w) + F.linear(x, m.w.view(4, 2, 2).movedim(1, 2).reshape(4, 4)),
        w=w,
    ).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    first, second = (call.outer for call in calls_of(model, x))
    first.samples = second.samples = 3
    assert first.joins != second.joins
    assert_matches_reference(model, x, outputs="full")


def test_positions_are_tokens_and_form_no_table():
    problem = problem_named("positions")
    model, x = problem.build(), problem.samples()
    with prepared(model, x, None, None, *convention("sum")) as prepared_problem:
        survey = prepared_problem.survey
        _, calls = follow(model, prepared_problem.parameters, x, survey.routes)
    assert "p.weight" in survey.work.shapes
    assert "p.weight" not in survey.work.rows
    (call,) = (call for call in calls if call.weight == "p.weight")
    assert isinstance(call, EmbeddingCall)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("length", [2, 3, 4])
def test_choices_hold_for_any_number_of_samples(n: int, length: int):
    """Whatever the sizes, none of which is told from the number of samples by chance."""
    torch.manual_seed(0)
    model = Apply(
        lambda m, x: (m.a(x.transpose(0, 1)) * m.s + m.p(torch.arange(x.shape[1]))[:, None]).sum(0),
        a=nn.Linear(3, 4),
        s=nn.Parameter(torch.ones(4)),
        p=nn.Embedding(6, 4),
    ).double()
    x = torch.randn(n, length, 3, dtype=torch.float64)
    assert set(entk(model, x).routes.values()) == {"rule"}
    assert_matches_reference(model, x, outputs="full")
    entk(model, torch.cat([x, x, x]))
    assert_matches_reference(model, torch.cat([x, x, x]), x, outputs="trace")


DECLINED = {
    "copies of its own": lambda m, x: m.w.expand(len(x), -1, -1).clone().sin()[:, 0] * x,
    "copies that take data": lambda m, x: (
        x[:, None] @ m.w.expand(len(x), -1, -1).clone().mul_(x.abs().sum(1)[:, None, None])
    ),
    "complex": lambda m, x: (x.to(torch.complex128) @ torch.complex(m.w, m.w)).abs(),
    "a row beside the samples": lambda m, x: torch.cat([m.w, x])[len(m.w) :] + (m.w**2).sum(),
    "data on both sides": lambda m, x: torch.einsum("na,ab,nb->n", x, m.w, x),
    "no sum": lambda m, x: torch.einsum("na,bc->nabc", x, m.w),
    "a diagonal": lambda m, x: torch.einsum("na,aa->na", x, m.w),
    "of its value": lambda m, x: x @ m.w + (x * m.w.detach()[0]).sum(1, keepdim=True),
    "of its sign": lambda m, x: (x @ m.w) * (m.w[0] > 0) + x * m.w.argmax(),
    "samples in columns": lambda m, x: (m.w @ x.T).T,
    "samples last": lambda m, x: (m.w[0][:, None] * x.T).T + (m.w @ x.T[None])[0].T,
}


@pytest.mark.parametrize("name", DECLINED)
def test_what_rules_decline_is_right_all_the_same(name: str):
    torch.manual_seed(0)
    model = Apply(DECLINED[name], w=nn.Parameter(torch.randn(4, 4))).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    assert_matches_reference(model, x, outputs="full")
    assert_matches_reference(model, x[:2], x, outputs="trace")


def test_frozen_parameters_are_constants():
    torch.manual_seed(0)
    model = Apply(
        lambda m, x: (x * m.s) @ (m.w * m.f) + m.f[0],
        s=nn.Parameter(torch.randn(4)),
        w=nn.Parameter(torch.randn(4, 3)),
        f=nn.Parameter(torch.randn(4, 3), requires_grad=False),
    ).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    kernel = entk(model, x)
    assert kernel.routes == {"s": "rule", "w": "rule"}
    assert_matches_reference(model, x, outputs="full")


def test_a_projected_lstm():
    """In double precision only: in single precision torch warns that oneDNN has none."""
    torch.manual_seed(0)
    options = {"proj_size": 2, "num_layers": 2, "bidirectional": True, "batch_first": True}
    model = Apply(lambda m, x: m.a(x)[0].flatten(1), a=nn.LSTM(3, 4, **options)).double()
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    assert set(entk(model, x).routes.values()) == {"rule"}
    assert_matches_reference(model, x, outputs="full")
