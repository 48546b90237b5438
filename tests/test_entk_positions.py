"""Heads of which few positions are used, and models in which their number depends on the data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import conescope as cs
from conescope.engine import exact
from reference import assert_matches_reference

PADDING = 0


class Reader(nn.Module):
    """Tokens [n, T] to logits: of the last token, of the last that is no padding, or of a mean."""

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.tokens, self.hidden = nn.Embedding(20, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits = self.head(self.hidden(self.tokens(ids)).tanh())
        kept = ids != PADDING
        if self.pool == "last":
            return logits[:, -1]
        if self.pool == "last token":
            return logits[torch.arange(len(ids)), kept.sum(dim=1) - 1]
        return (logits * kept[..., None]).sum(dim=1) / kept.sum(dim=1, keepdim=True)


def padded(lengths: list[int]) -> Tensor:
    ids = torch.randint(1, 20, (len(lengths), 12), generator=torch.Generator().manual_seed(0))
    for row, length in zip(ids, lengths, strict=True):
        row[length:] = PADDING
    return ids


@pytest.mark.parametrize("outputs", ["trace", "full", 3])
@pytest.mark.parametrize("pool", ["last", "last token", "mean"])
@pytest.mark.parametrize("lengths", [[12] * 4, [1, 2, 12, 5], [12, 1, 1, 1], [1, 1, 9, 12]])
def test_positions_that_gradients_reach(pool, outputs, lengths):
    torch.manual_seed(1)
    model, ids = Reader(pool).double().eval(), padded(lengths)
    assert_matches_reference(model, ids, outputs=outputs)
    assert_matches_reference(model, ids[:3], ids[1:], outputs=outputs)


def test_more_positions_than_at_first_are_looked_for_once(monkeypatch):
    torch.manual_seed(1)
    model, short, long = Reader("mean").double().eval(), padded([1, 1]), padded([1, 1, 9, 12])
    assert_matches_reference(model, short)
    assert_matches_reference(model, long)
    monkeypatch.setattr(exact, "survey_anew", None)
    assert_matches_reference(model, long)


def test_only_what_gradients_reach_is_held():
    """The head's factors for 4 of 64 positions would be 16 times as large with all of them."""
    torch.manual_seed(1)
    model = Reader("last").eval()
    ids = torch.randint(1, 20, (4, 64))
    planned = cs.engine.plan(model, ids, outputs="sum")
    (head,) = [layer for layer in planned.layers if layer.layer == "tokens"]
    width, vocabulary, element = 6, 20, 4
    assert head.bytes == 4 * element * (64 * width + vocabulary)


class Offset(nn.Module):
    """Two parameters whose gradients of one sample autograd returns as the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(1, 6)) for _ in range(2))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((x + (self.first + self.second)).tanh())


def test_gradients_that_are_the_same_tensor_are_not_added_up_in_place():
    torch.manual_seed(0)
    model, x = Offset().double().eval(), torch.randn(5, 6).double()
    assert set(cs.entk(model, x).routes.values()) == {"rule"}
    assert_matches_reference(model, x)
