"""Cotangents handed out one by one, against those that autograd returns together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from conescope.entk.cotangents import backward_passes

DIRECTIONS = torch.eye(3, dtype=torch.float64)


def branched() -> tuple[Tensor, list[Tensor]]:
    """Outputs [4, 3]; places in a chain, in a side branch, beside a skip, and without any use."""
    torch.manual_seed(0)
    x = torch.randn(4, 5, dtype=torch.float64) + torch.zeros((), requires_grad=True)
    first = x @ torch.randn(5, 6, dtype=torch.float64)
    second = first.tanh() @ torch.randn(6, 6, dtype=torch.float64)
    side = (2 * x).sin()
    unused = second.exp()
    head = (first + second).relu() @ torch.randn(6, 3, dtype=torch.float64)
    return head + side[:, :3], [first, second, side, unused, head]


def taken(outputs: Tensor, places: list[Tensor]) -> dict[tuple[int, int], Tensor]:
    edges = [get_gradient_edge(place) for place in places]
    found: dict[tuple[int, int], Tensor] = {}

    def take(k: int, number: int, g: Tensor) -> None:
        assert (k, number) not in found
        found[k, number] = g.clone()

    passes = []
    for k in backward_passes(outputs, edges, DIRECTIONS, take):
        assert max(direction for direction, _ in found) == k
        passes.append(k)
    assert passes == [0, 1, 2]
    return found


def test_every_cotangent_comes_once_and_is_autograd_s():
    outputs, places = branched()
    found = taken(outputs, places)
    outputs, places = branched()
    for k, direction in enumerate(DIRECTIONS):
        together = torch.autograd.grad(
            outputs, places, direction.expand_as(outputs), retain_graph=True, allow_unused=True
        )
        for number, g in enumerate(together):
            if g is None:
                assert (k, number) not in found
            else:
                torch.testing.assert_close(found[k, number], g, rtol=0, atol=1e-14)
    assert {number for _, number in found} == {0, 1, 2, 4}


def test_an_error_while_taking_comes_through_and_leaves_no_hook():
    outputs, places = branched()
    edges = [get_gradient_edge(place) for place in places]
    calls: list[int] = []

    def refuse(k: int, number: int, g: Tensor) -> None:
        calls.append(number)
        raise LookupError(str(number))

    with pytest.raises(LookupError):
        list(backward_passes(outputs, edges, DIRECTIONS, refuse))
    count = len(calls)
    torch.autograd.grad(outputs.sum(), places[0])
    assert count == len(calls) == 1
