"""Layer rules: what each has to provide, and how a new one is added."""

from __future__ import annotations

import pkgutil
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conescope.engine import entk, layers
from conescope.engine.arguments import convention
from conescope.engine.layers.call import INTERCEPTIONS, Call, Recording
from conescope.engine.problem import prepared
from conescope.engine.tracing.routes import follow
from problems import PROBLEMS, Problem
from reference import assert_matches_reference


@dataclass
class PReLUCall(Call):
    """y = max(x, 0) + a min(x, 0), with one slope a for each channel."""

    def weight_rows(self, g: Tensor) -> Tensor:
        slopes = (g * self.source.clamp(max=0)).flatten(2).sum(dim=-1)
        return self.by_sample(slopes).sum(dim=1)


def _prelu(recorder: Recording, input: Tensor, weight: Tensor) -> Tensor:  # noqa: A002
    recorder.note_uncovered(input)
    y = F.prelu(input, recorder.detached(weight))
    return recorder.keep(PReLUCall, weight, None, input, y)


def network(dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.PReLU(4), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers).to(dtype), torch.randn(5, 3, 6, 6, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outputs", ["trace", "full", "sum", 1])
def test_a_new_layer_is_a_call_and_an_interception(monkeypatch, dtype, outputs):
    model, x = network(dtype)
    assert entk(model, x).routes["1.weight"] == "general"
    monkeypatch.setitem(INTERCEPTIONS, F.prelu, _prelu)
    model, x = network(dtype)
    assert entk(model, x).routes["1.weight"] == "rule"
    assert_matches_reference(model, x, outputs=outputs)
    assert_matches_reference(model, x[:2], x[2:], outputs=outputs)


def test_a_wrong_rule_is_found_by_the_self_check(monkeypatch):
    right = PReLUCall.weight_rows
    monkeypatch.setitem(INTERCEPTIONS, F.prelu, _prelu)
    monkeypatch.setattr(PReLUCall, "weight_rows", lambda call, g: 1.01 * right(call, g))
    model, x = network(torch.float64)
    assert entk(model, x).routes["1.weight"] == "general"
    assert_matches_reference(model, x)


def test_every_file_of_a_layer_is_registered():
    files = {f"{layers.__name__}.{m.name}" for m in pkgutil.iter_modules(layers.__path__)}
    registered = {interception.__module__ for interception in INTERCEPTIONS.values()}
    assert registered == files - {f"{layers.__name__}.call"}


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_a_call_knows_what_its_cotangent_holds(problem: Problem):
    """The memory budget counts on `cotangent_elements`, and blocks are as large as it allows."""
    model, x = problem.build(), problem.samples()
    with prepared(model, x, None, None, *convention("trace")) as prepared_problem:
        routes, parameters = prepared_problem.survey.routes, prepared_problem.parameters
        outputs, calls = follow(model, parameters, x, routes)
        used = [call for number, call in enumerate(calls) if number not in routes.idle]
        targets = [call.target for call in used]
        gradients = torch.autograd.grad(outputs.sum(), targets) if targets else ()
        for call, gradient in zip(used, gradients, strict=True):
            assert gradient.numel() == call.cotangent_elements * call.samples
