"""A model that is measured, changed by its user, and measured again: nothing stale counts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conescope.engine import entk, estimate_entk, project
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
