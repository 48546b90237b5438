"""A model that is measured, changed by its user, and measured again: nothing stale counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conescope.engine import entk, estimate_entk, exact, plan, project
from conescope.errors import KernelError
from problems import Apply
from reference import assert_matches_jacobians, assert_matches_reference, jacobians


class Reader(nn.Module):
    """A small language model with a tied embedding, whose read-out is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.body = nn.Embedding(7, 8), nn.Linear(8, 8)
        self.double()
        self.read = "last"

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.body(self.tokens(ids)))
        logits = h @ self.tokens.weight.T
        if self.read == "shared":
            logits = logits + F.linear(h, self.body.weight[:7])
        return logits.mean(1) if self.read == "mean" else logits[:, -1]


def sequences(n: int = 5) -> Tensor:
    return torch.randint(7, (n, 6), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize(
    "ways", [("last", "shared", "mean", "last"), ("shared", "mean"), ("mean", "last", "mean")]
)
def test_a_forward_pass_that_changes_twice(ways: tuple[str, ...], check):
    model, ids = Reader(), sequences()
    for number, model.read in enumerate(ways):
        assert_matches_reference(model, ids, check=check or number > 0)
    assert "general" not in entk(model, ids).routes.values()
    model.read = "shared"
    estimate_entk(model, ids)
    model.read = "mean"
    project(model, ids, dim=64)


def test_a_hook_on_a_weight_that_comes_and_goes_between_two_calls():
    model, ids = Reader(), sequences()
    assert_matches_reference(model, ids)
    plain = jacobians(model, ids)
    masked = plain | {"body.weight": plain["body.weight"] * torch.eye(8).double().flatten()}
    hook = model.body.weight.register_hook(lambda g: g * torch.eye(8, dtype=g.dtype))
    assert_matches_jacobians(masked, masked, model, ids)
    hook.remove()
    assert_matches_jacobians(plain, plain, model, ids)
    assert entk(model, ids).routes["body.weight"] == "rule"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kernel_of_tokens_follows_the_type_of_the_model(dtype: torch.dtype):
    model, ids = Reader(), sequences()
    assert entk(model, ids).values.dtype == torch.float64
    kernel = entk(model.to(dtype), ids)
    assert kernel.values.dtype == torch.float32
    torch.testing.assert_close(kernel.values, entk(Reader().to(dtype), ids).values)
    assert entk(model.double(), ids).values.dtype == torch.float64


def test_a_model_with_another_number_of_outputs_is_surveyed_anew():
    model, ids = Reader(), sequences()
    assert_matches_reference(model, ids, outputs="full")
    hook = model.register_forward_hook(lambda module, args, out: out[:, :3])
    assert_matches_reference(model, ids, outputs="full")
    hook.remove()
    assert_matches_reference(model, ids, outputs=5)
    hook = model.register_forward_hook(lambda module, args, out: out[:, :3])
    assert torch.isfinite(estimate_entk(model, ids).values).all()
    hook.remove()
    assert torch.isfinite(project(model, ids, dim=64).values).all()
    with pytest.raises(KernelError, match="output 7 is out of range: the model has 7 outputs"):
        entk(model, ids, outputs=7)


def test_branches_that_other_samples_take_are_left_to_themselves_at_once(monkeypatch):
    torch.manual_seed(0)
    surveys: list[object] = []
    survey_anew = exact.survey_anew
    monkeypatch.setattr(exact, "survey_anew", lambda *of: surveys.append(of) or survey_anew(*of))

    def branched(m: Any, ids: Tensor) -> Tensor:
        h = m.tokens(ids)
        taken = [(ids == n)[..., None] * branch(h) for n, branch in enumerate(m.branches)]
        return m.read(h + sum(taken)).mean(1)

    model = Apply(
        branched,
        tokens=nn.Embedding(7, 8),
        branches=nn.ModuleList(nn.Linear(8, 8) for _ in range(4)),
        read=nn.Linear(8, 3),
    ).double()
    ids = torch.tensor([[6, 6, 6], [5, 6, 5], [0, 1, 6], [2, 3, 3]])
    assert_matches_reference(model, ids, check=False)
    assert len(surveys) == 1
    planned = {layer.layer for layer in plan(model, ids).layers if layer.route == "general"}
    assert planned == {f"branches.{n}" for n in range(4)}
    entk(model, ids)
    surveys.clear()
    assert_matches_reference(model, ids)
    assert surveys == []
    assert_matches_reference(model, ids.flip(0))
