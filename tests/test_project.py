"""Projections of per-sample gradients: the right ones, without bias, the same everywhere."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import conescope as cs
from conescope.engine.arguments import Cotangents
from conescope.engine.compute.sketch import Sketch
from conescope.errors import ArgumentError, KernelError, ModelError
from conescope.kernel.features import Features
from problems import PROBLEMS, Apply, problem_named
from reference import assert_near, jacobians, sketched
from untouched import untouched

project_file = import_module("conescope.engine.project")  # the package has the function


def expected_features(model: nn.Module, x: Tensor, dim: int, draws: int, seed: int = 0) -> Tensor:
    """Return the features, from gradients that plain autograd forms and sketches of each entry."""
    groups = 8 if draws == 1 else draws
    like = torch.empty(0, dtype=torch.float64)
    sketch = Sketch(dim, groups, seed, like)
    rows = jacobians(model, x)
    width = next(iter(rows.values())).shape[1]
    cotangents = Cotangents.signs(draws, width, seed, like).part(0, draws)
    parameters = dict(model.named_parameters())
    total = torch.zeros(draws, len(x), dim, dtype=torch.float64)
    for name, found in rows.items():
        p = parameters[name]
        height = len(p) if p.dim() > 1 else p.numel()
        gradients = torch.einsum("nkp,vk->vnp", found, cotangents).unflatten(2, (height, -1))
        axes = sketch.axes(name, *gradients.shape[2:])
        total += torch.stack([sketched(gradient, *axes) for gradient in gradients])
    if draws > 1:
        parts = total.unflatten(2, (draws, -1))
        total = torch.stack([parts[k, :, k] for k in range(draws)], dim=1).flatten(1)[None]
    return total[0] / math.sqrt(sketch.blocks)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
@pytest.mark.parametrize("draws", [1, 3])
def test_features_are_the_sketches_of_gradients(problem, draws):
    model, x = problem.build(), problem.samples()
    dim = 96
    with untouched(model, x):
        features = cs.project(model, x, dim=dim, draws=draws)
    assert features.groups == (8 if draws == 1 else 3)
    assert_near(features.values, expected_features(model, x, dim, draws))


class Mixed(nn.Module):
    """An embedding tied to its head, a convolution, a norm, and weights without a rule."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.conv = nn.Conv1d(6, 6, 3, padding=1)
        self.norm = nn.LayerNorm(6)
        self.linear = nn.Linear(6, 6)
        self.gain = nn.Parameter(torch.ones(6, 6))
        self.phase = nn.Parameter(torch.ones(6, dtype=torch.complex128))
        self.head = nn.Linear(6, 7)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + torch.tanh(self.conv(x.mT)).mT
        x = torch.tanh(self.linear(self.norm(x))) @ self.gain.exp()
        x = (torch.fft.fft(x, dim=-1) * self.phase).real
        return self.head(x)[:, -1]


def mixed() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(2)
    model = Mixed().double().eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return model, torch.randint(7, (5, 9))


def test_products_are_unbiased():
    model, x = mixed()
    seeds = 200
    single = Apply(lambda m, tokens: m.model(tokens).sin().sum(dim=1), model=model)
    exact = cs.entk(single, x).values
    kernels = [cs.project(single, x, dim=64, seed=seed).kernel for seed in range(seeds)]
    values = torch.stack([kernel.values for kernel in kernels])
    error = (values.mean(dim=0) - exact) / (values.std(dim=0) / math.sqrt(seeds))
    assert float(error.abs().max()) < 5


def test_draws_average_to_the_class_trace():
    model, x = mixed()
    exact = cs.entk(model, x).values
    kernel = cs.project(model, x, dim=64 * 400, draws=400).kernel
    assert kernel.draws.shape == (400, 5, 5)
    assert_near(kernel.values, kernel.draws.mean(dim=0))
    error = (kernel.values - exact).abs()
    assert bool((error <= 5 * kernel.standard_error).all())


def test_projections_of_parameters_add_up():
    model, x = mixed()
    whole = cs.project(model, x, dim=80).values
    parts = (["embedding", "norm", "phase"], ["conv", "linear", "gain", "head.bias"])
    assert_near(sum(cs.project(model, x, dim=80, params=part).values for part in parts), whole)


@pytest.mark.parametrize("draws", [1, 2])
def test_halves_have_the_same_features_as_the_whole(draws):
    model, x = mixed()
    whole = cs.project(model, x, dim=80, draws=draws).values
    halves = [cs.project(model, part, dim=80, draws=draws).values for part in (x[:2], x[2:])]
    assert_near(torch.cat(halves), whole, 1e-12)


def test_the_same_call_gives_the_same_bits():
    model, x = mixed()
    first, again = (cs.project(model, x, dim=80).values for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, cs.project(model, x, dim=80, seed=1).values)


class Wrapped(nn.Module):
    """A wrapper as the adapters of measuring/ are: it says where the user's model is."""

    wrapped_as = "inner"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


def test_a_wrapper_does_not_change_a_projection():
    problem = problem_named("mlp")
    model, x = problem.build(), problem.samples()
    plain = cs.project(model, x, dim=80).values
    assert torch.equal(cs.project(Wrapped(model).eval(), x, dim=80).values, plain)


def test_a_route_does_not_change_a_projection():
    """A head that is zero at first sends what comes before it the general route."""
    model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Linear(40, 3)).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    nn.init.zeros_(model[2].weight)
    assert_near(cs.project(model, x, dim=80).values, expected_features(model, x, 80, 1))
    nn.init.normal_(model[2].weight)
    assert_near(cs.project(model, x, dim=80).values, expected_features(model, x, 80, 1))


def test_distance_is_near_with_its_error():
    model, x = mixed()
    options = {"dim": 4096, "draws": 8}
    first, before = cs.project(model, x, **options).kernel, cs.estimate_entk(model, x, draws=8)
    with torch.no_grad():
        model.linear.weight += 0.2 * torch.randn_like(model.linear.weight)
        model.conv.weight += 0.2 * torch.randn_like(model.conv.weight)
    second, after = cs.project(model, x, **options).kernel, cs.estimate_entk(model, x, draws=8)
    s, error = cs.estimate_distance(first, second)
    assert 0 < error < s
    assert abs(s - cs.kernel_distance(before, after)) < 4 * error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_is_near(dtype):
    problem = problem_named("mlp")
    model, x = problem.build(), problem.samples()
    exact = cs.project(model, x, dim=80).values
    values = cs.project(problem.build(dtype), x.to(dtype), dim=80).values
    assert values.dtype == torch.float32
    assert_near(values.double(), exact, 1e-6 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 4090}, "dim=4090 cannot be divided into 8 equal groups"),
        ({"dim": 4}, "dim=4 cannot be divided into 8 equal groups"),
        ({"dim": 0}, "dim=0 cannot be divided"),
        ({"dim": 10, "draws": 3}, "dim=10 cannot be divided into 3 equal groups"),
        ({"dim": 64.0}, "expected dim to be a whole number, got 64.0"),
        ({"dim": "64"}, "got '64'"),
        ({"dim": 2**50}, "too small"),
        ({"draws": 0}, "at least 1 draw, not 0"),
        ({"draws": 2.0}, "expected draws to be a whole number"),
        ({"seed": 1.5}, "expected seed to be a whole number"),
        ({"seed": 2**64}, "seed is a whole number"),
        ({"memory": "1 kB"}, r"too small.*allow at least memory=\d+e6"),
        ({"memory": "no"}, "memory is an amount"),
        ({"memory": "1 kB", "check": False}, r"too small.*allow at least memory=\d+e6"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    model, x = mixed()
    with pytest.raises((KernelError, ArgumentError), match=message):
        cs.project(model, x, **options)


def test_bad_models_and_samples_are_refused_as_by_entk():
    model, x = mixed()
    with pytest.raises(ModelError, match="which no parameter of the model matches"):
        cs.project(model, x, params="absent")
    with pytest.raises(ModelError, match="holds no samples"):
        cs.project(model, x[:0])
    with pytest.raises(ModelError, match=r"call model.eval\(\)"):
        cs.project(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.randn(4, 3))
    centred = Apply(lambda m, z: m.linear(z - z.mean(dim=0)), linear=nn.Linear(3, 3))
    with pytest.raises(ModelError, match="change with the others in its batch"):
        cs.project(centred, torch.randn(4, 3))
    root = Apply(lambda m, z: (0 * m.linear(z)).sqrt(), linear=nn.Linear(3, 3))
    with pytest.raises(ModelError, match="gradient"):
        cs.project(root, torch.randn(4, 3))
    constant = Apply(lambda m, z: m.linear(z).detach(), linear=nn.Linear(3, 3))
    with pytest.raises(ModelError, match="no output depends on the parameters"):
        cs.project(constant, torch.randn(4, 3))


def test_a_budget_that_is_named_suffices():
    model, x = mixed()
    cs.project(model, x)
    with pytest.raises(KernelError) as refused:
        cs.project(model, x, memory="1 kB")
    (least,) = re.findall(r"at least memory=(\S+)", str(refused.value))
    assert cs.project(model, x, memory=least).values.shape == (5, 4096)
    least = float(least) - 1e6
    with pytest.raises(KernelError, match="too small"):
        cs.project(model, x, memory=least)


def test_a_budget_counts_gradients_of_weights_that_are_stored_otherwise():
    model = Apply(lambda m, x: F.embedding(x, m.e.weight.view(-1, 32)), e=nn.Embedding(200_000, 32))
    x = torch.zeros(4, 3).long()
    with pytest.raises(KernelError, match="too small"):
        cs.project(model, x, dim=48, memory="400MB", check=False)
    cs.project(model.e, x, dim=48, memory="400MB", check=False)


PEAK = """
import resource, sys, torch
from torch import nn
import conescope as cs
torch.manual_seed(0)
torch.set_num_threads(1)
if sys.argv[1] == "convolutions":
    layers = [nn.Conv2d(3, 24, 3, padding=1), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()]
    model = nn.Sequential(*layers, nn.MaxPool2d(4), nn.Flatten(), nn.Linear(24 * 16, 10)).eval()
    x = torch.randn(96, 3, 16, 16)
else:
    layers = [nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64), nn.LayerNorm(64)]
    model = nn.Sequential(nn.Embedding(2000, 64), *layers, nn.Linear(64, 2000))
    x = torch.randint(2000, (40, 128))
cs.project(model, x[:2], dim=512, check=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
features = cs.project(model, x, memory=sys.argv[2], check=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((peak - before) * 1024 - features.values.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
@pytest.mark.parametrize(("model", "megabytes"), [("convolutions", 120), ("tokens", 160)])
def test_peak_stays_within_the_budget(model, megabytes):
    command = [sys.executable, "-c", PEAK, model, f"{megabytes}MB"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert float(done.stdout) <= 1.1e6 * megabytes


@pytest.mark.parametrize("block", [1, 2, 3])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_blocks_of_any_size_give_the_same_features(monkeypatch, problem, block):
    model, x = problem.build(), problem.samples(5)
    whole = cs.project(model, x, dim=48).values
    monkeypatch.setattr(project_file, "_block", lambda *_: block)
    assert_near(cs.project(model, x, dim=48).values, whole)


def test_features_check_themselves():
    with pytest.raises(ArgumentError, match="values to be a Tensor, got list"):
        Features([[1.0, 2.0]], 2)
    for values in (torch.ones(4), torch.ones(2, 4, dtype=torch.int64)):
        with pytest.raises(KernelError, match=r"real numbers \[n, dim\]"):
            Features(values, 2)
    for dim, groups in ((4, 1), (4, 0), (5, 2), (0, 2)):
        with pytest.raises(KernelError, match="equal groups"):
            Features(torch.ones(3, dim), groups)
    with pytest.raises(KernelError, match="NaN or infinite"):
        Features(torch.full((2, 4), math.nan), 2)


def test_draws_of_features_are_the_products_of_their_groups():
    values = torch.randn(3, 12)
    kernel = Features(values, 4).kernel
    assert_near(kernel.values, values @ values.T, 1e-6)
    for draw, part in zip(kernel.draws, values.split(3, dim=1), strict=True):
        assert_near(draw, 4 * part @ part.T, 1e-6)
