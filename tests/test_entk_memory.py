"""The memory budget: the same kernel in smaller pieces, and a peak within the budget."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import weakref
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import reference
from conescope.engine import entk, selfcheck
from conescope.engine.arguments import convention
from conescope.engine.compute.budget import Cut
from conescope.engine.general import plain_gradients
from conescope.engine.problem import Problem, prepared
from conescope.errors import KernelError
from problems import PROBLEMS, problem_named
from reference import assert_exact, assert_matches_jacobians


@cache
def jacobians_of(problem) -> dict[str, Tensor]:
    """The Jacobians of five samples, the same for every cut."""
    return reference.jacobians(problem.build(), problem.samples(5))


@pytest.mark.parametrize("cut", [(1, 1, 1), (2, 3, 2), (1, 2, 5), (4, 4, 1)])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_pieces_of_any_size_make_the_same_kernel(monkeypatch, problem, cut):
    block, chunk, cotangents = cut
    model, x, rows = problem.build(), problem.samples(5), jacobians_of(problem)
    left, right = ({name: r[part] for name, r in rows.items()} for part in (slice(2), slice(2, 5)))
    for outputs in ("full", "trace"):
        together = 1000 if outputs == "full" else cotangents
        pieces = Cut(block, chunk, together, 50, 0)
        monkeypatch.setattr(Problem, "pieces", lambda *_, pieces=pieces: pieces)
        assert_matches_jacobians(rows, rows, model, x, outputs=outputs)
        assert_matches_jacobians(left, right, model, x[:2], x[2:], outputs=outputs)


def test_too_small_a_budget_says_what_works():
    problem = problem_named("convolution")
    model, x = problem.build(), problem.samples()
    with pytest.raises(KernelError, match="too small") as refusal:
        entk(model, x, memory="1MB")
    least = re.search(r"memory=([0-9]+e6)", str(refusal.value))
    assert least is not None
    assert_exact(entk(model, x, memory=float(least[1])).values, entk(model, x).values)


PEAK = """
import resource, sys, torch
from torch import nn
from conescope.engine import entk
torch.manual_seed(0)
torch.set_num_threads(1)
layers = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU()]
for _ in range(4):
    layers += [nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()]
model = nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(24 * 16, 10)).eval()
x = torch.randn(96, 3, 16, 16)
entk(model, x[:2], outputs=sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kernel = entk(model, x, outputs=sys.argv[1], memory=sys.argv[2])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - before) * 1024 - kernel.values.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.parametrize(("outputs", "megabytes"), [("trace", 100), ("full", 160), ("sum", 80)])
def test_peak_stays_within_the_budget(outputs: str, megabytes: int):
    command = [sys.executable, "-c", PEAK, outputs, f"{megabytes}MB"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1.1e6 * megabytes


FIRST = """
import resource, sys, torch
from torch import nn
from conescope.engine import entk, estimate_entk
torch.manual_seed(0)
torch.set_num_threads(1)
kind, memory = sys.argv[1:]
warm = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 5)).eval()
estimate_entk(warm, torch.randn(8, 3, 8, 8))
entk(warm, torch.randn(8, 3, 8, 8), outputs="full")
if kind == "tokens":
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.head = nn.Embedding(3000, 128), nn.Linear(128, 3000)
            layer = nn.TransformerEncoderLayer(128, 4, 512, dropout=0.0, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 8, enable_nested_tensor=False)
        def forward(self, ids):
            return self.head(self.layers(self.embedding(ids))[:, -1])
    model, x = Tokens().eval(), torch.randint(3000, (48, 64))
    call = lambda: estimate_entk(model, x, draws=2, memory=memory)
else:
    layers = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()]
    model = nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(24 * 16, 10)).eval()
    x = torch.randn(96, 3, 16, 16)
    call = lambda: entk(model, x, memory=memory)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
call()
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
LOADED = 16e6
"""Bytes of code and tables that a first call may load, beside its budget."""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.parametrize(
    ("kind", "megabytes"), [("tokens", 150), ("tokens", 400), ("images", 100), ("images", 300)]
)
def test_the_first_call_stays_within_the_budget(kind: str, megabytes: int):
    command = [sys.executable, "-c", FIRST, kind, f"{megabytes}MB"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1.1e6 * megabytes + LOADED


def test_the_self_check_takes_some_parameters_at_a_time(monkeypatch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Linear(4, 3)).double()
    sizes: list[int] = []

    def noted(model, parameters, *rest):
        sizes.append(sum(p.numel() for p in parameters.values()))
        return plain_gradients(model, parameters, *rest)

    monkeypatch.setattr(selfcheck, "plain_gradients", noted)
    x = torch.randn(4, 6).double()
    with prepared(model, x, None, None, *convention("sum")) as problem:
        problem = selfcheck.sample_problem(problem, problem.survey)
        expected: dict[str, Tensor] = {}
        for name, jacobian in reference.jacobians(model, problem.x).items():
            rows = jacobian.transpose(1, 2) @ problem.cotangents.part(0, 1)[0]
            layer = name.rpartition(".")[0]
            expected[layer] = expected.get(layer, 0) + rows @ rows.T
        expected = {layer: values[None] for layer, values in expected.items()}
        wrong = {layer: values * (1.0 + 1e-6) for layer, values in expected.items()}
        for few, passes in ((2**20, 1), (1, 2)):
            monkeypatch.setattr(selfcheck, "_FEW", few)
            sizes.clear()
            assert selfcheck.agrees_with_autograd(problem, expected, budget=2048)
            assert not selfcheck.agrees_with_autograd(problem, wrong, budget=2048)
            assert sum(sizes) == 2 * sum(p.numel() for p in model.parameters())
            assert len(sizes) == 2 * passes


def test_nothing_of_the_survey_stays_in_memory():
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3), nn.Softmax(dim=1)).eval()
    outputs: list[weakref.ref[Tensor]] = []
    for module in model:
        module.register_forward_hook(lambda *given: outputs.append(weakref.ref(given[2])))
    entk(model, torch.randn(4, 5))
    gc.collect()
    assert outputs
    assert all(output() is None for output in outputs)


class LastPosition(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.head = nn.Linear(3, 4), nn.Linear(4, 500)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x))[:, -1]


def test_outputs_that_are_a_part_of_a_larger_tensor_count_with_all_of_it():
    x = torch.randn(5, 16, 3)
    with prepared(LastPosition().eval(), x, None, None, *convention("sum")) as problem:
        assert problem.survey.work.passing >= 2 * 16 * 500  # outputs, and their gradients
